"""Retrieval metrics of each query, the metrics that a benchmark reports, and intervals. numpy only."""
