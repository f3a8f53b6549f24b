"""Studies: many runs, each a job in a process of its own, and what follows from them."""
