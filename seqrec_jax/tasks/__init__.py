"""What a user runs: each module is one task, named by a Gin file."""
