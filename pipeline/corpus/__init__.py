"""A corpus: annotations, and the places of its clips."""
