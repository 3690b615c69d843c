"""Files, locks, processes and the machine."""
