"""Rankers: from looked-up embeddings to probabilities."""
