"""The raw log: files, dialects, columns, readings."""
