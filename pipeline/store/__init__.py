"""Decoded clips on disk, for training on raw media."""
