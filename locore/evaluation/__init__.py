"""A search measured, and anyone's embeddings measured."""
