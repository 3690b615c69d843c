"""The command line: the commands, and the options, settings and output that they share."""
