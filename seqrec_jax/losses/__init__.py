"""Training losses and the negative proposals they draw from."""
