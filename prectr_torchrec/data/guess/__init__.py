"""A configuration for somebody's own files, guessed by looking at them."""
