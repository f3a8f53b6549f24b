"""Fine-tuning a recommender on another dataset, and what that gains and forgets."""
