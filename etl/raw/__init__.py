"""Raw files: found, fetched, cut into blocks, read, checked. Knows nothing of datasets."""
