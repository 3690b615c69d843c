"""Raw clips to feature cache."""
