"""The training loop, training lists, trained global descriptors, and how models start."""
