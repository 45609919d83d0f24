"""A search log made from known parameters."""
