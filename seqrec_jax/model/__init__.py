"""Item encoder, transformer, and the recommender that joins them."""
