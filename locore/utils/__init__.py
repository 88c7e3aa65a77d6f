"""Plumbing that knows nothing of images: files, progress, processes, safe reading."""
