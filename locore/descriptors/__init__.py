"""Descriptors of images: extracted with a vision model, cached on disk, or read from files."""

from locore.descriptors.extractor import Extractor
from locore.descriptors.table import Descriptors

__all__ = ["Descriptors", "Extractor"]
