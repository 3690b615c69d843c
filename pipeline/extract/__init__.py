"""Extraction: annotations and clips -> caches, as a stage that can be killed and resumed."""
