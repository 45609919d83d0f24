"""Predictions and what is measured, reported and explained of them."""
