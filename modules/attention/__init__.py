"""Attention of candidates over events."""
