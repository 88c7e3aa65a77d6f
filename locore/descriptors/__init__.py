"""Descriptors: extracted with a vision model, kept on disk."""

from locore.descriptors.extract import Extractor
from locore.descriptors.store import Descriptors

__all__ = ["Descriptors", "Extractor"]
