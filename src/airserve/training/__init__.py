"""Training and evaluation of the ranker and of its baselines."""
