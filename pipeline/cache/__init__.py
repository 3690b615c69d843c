"""The feature cache: its format, the ledger of failures, the 128-d embeddings."""
