"""Groups of commands that have a file of their own; all others stand in cli.py."""
