"""The `prectr` command."""
