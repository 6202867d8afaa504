"""Training: loop, optimizer, schedule, balance updates, metrics, resume."""
