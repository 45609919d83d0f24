"""From a raw log to samples."""
