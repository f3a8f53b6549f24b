"""Raw interaction logs to dataset folders. Never imports jax."""
