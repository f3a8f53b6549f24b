"""A run's folder: its identity, metrics, tracking, stop requests and costs."""
