"""The service under load, under faults, and beside its peers."""
