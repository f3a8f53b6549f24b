"""The training loop, its jitted step, optimizers, checkpoints and tracking."""
