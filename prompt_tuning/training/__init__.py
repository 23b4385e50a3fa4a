"""State, optimizer, step, metrics and the training loop."""
