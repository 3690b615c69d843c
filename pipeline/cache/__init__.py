"""The feature cache: its format, what failed, the 128-d embeddings."""
