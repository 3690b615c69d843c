"""Feature cache to trained, measured model."""
