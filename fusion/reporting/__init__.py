"""Measured runs as an HTML page."""
