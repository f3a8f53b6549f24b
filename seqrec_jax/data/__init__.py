"""The dataset on disk, its splits, and the packed batches made from it."""
