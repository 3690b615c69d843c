"""One backbone family per file; `registry.py` lists them by name."""
