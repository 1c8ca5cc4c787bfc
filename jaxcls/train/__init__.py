"""Training: pure losses, schedules and steps; the loop that drives them; checkpoints."""
