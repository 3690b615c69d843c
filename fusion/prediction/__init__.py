"""Media files to timeline files: JSON, CSV, subtitles and a page."""
