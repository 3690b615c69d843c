"""Predicts media files and writes timelines as JSON, CSV, subtitles and HTML pages."""
