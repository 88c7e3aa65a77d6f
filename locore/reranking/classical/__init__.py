"""Re-rankers without training, one a file: by global descriptors, by matches of local ones, by geometry."""
