"""Checkpoints: saved, checked, moved to other ranks, inspected."""
