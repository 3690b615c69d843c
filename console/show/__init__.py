"""Prints the result of each command: tables and a few lines, or one JSON object."""
