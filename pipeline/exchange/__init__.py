"""Feature caches in the formats of others: Parquet, npz, MMSA's pickle."""
