"""Descriptors: extracted with a vision model, kept on disk."""

from locore.descriptors.extractor import Extractor
from locore.descriptors.table import Descriptors

__all__ = ["Descriptors", "Extractor"]
