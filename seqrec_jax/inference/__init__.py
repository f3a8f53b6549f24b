"""A recommender laid over a catalog: encoded once, compiled once for a shape."""
