"""Feature caches to a trained run."""
