"""Run directories and whatever is written into them."""
