"""Ratios measured in one run on the same clips: `make bench` or `python -m bench --help`."""
