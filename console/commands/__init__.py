"""Groups of commands that have a file of their own; all other commands are in cli.py."""
