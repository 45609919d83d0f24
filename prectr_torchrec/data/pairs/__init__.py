"""Query and title pairs for teacher and student."""
