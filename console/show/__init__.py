"""What each command found, as it is printed: tables and a few lines, or one JSON object."""
