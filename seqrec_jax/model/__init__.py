"""The recommender: its spec, its parameters, the network that they make, and how it is kept on disk."""
