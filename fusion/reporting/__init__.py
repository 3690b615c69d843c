"""Reports of measured runs as an HTML page."""
