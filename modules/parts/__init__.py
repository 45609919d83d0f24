"""Parts that a ranker is put together from."""
