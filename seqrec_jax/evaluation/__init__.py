"""Ranking metrics over the whole catalog, and baselines."""
