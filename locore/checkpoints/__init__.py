"""Checkpoints: our own, published ones, and language models to start from."""
