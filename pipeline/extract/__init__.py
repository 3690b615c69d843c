"""Annotations and clips to caches, as one run that may be killed."""
