"""Training: feature caches -> a trained run."""
