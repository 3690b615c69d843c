"""One file per command: its options, its config, one call, and its result."""
