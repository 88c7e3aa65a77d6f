"""Re-rank the hits of any search, and index a folder of photos."""
