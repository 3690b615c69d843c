"""Trials of the service under load, under faults, and compared with a simple handler."""
