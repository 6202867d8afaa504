"""Several processes at work on one model, applied to plain models from outside."""
