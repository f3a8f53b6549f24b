"""What Gin files name: one adapter for each task, and the registry of names."""
