"""The configuration: checked sections, read from YAML."""
