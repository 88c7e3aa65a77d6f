"""Descriptors by a network that is being trained: made when they are indexed, with gradients."""

from __future__ import annotations

import torch
from torch import Tensor

from locore.datasets.benchmark import ImageSet
from locore.descriptors.embedder import Embedder
from locore.descriptors.extractor import Extractor
from locore.descriptors.table import Descriptors, unpack

IMAGES = 64  # a forward pass where no gradients are wanted


class OnlineTable:
    """A table of descriptors that is never stored.

    Args:
        embedder: describes the images, with gradients where they are enabled.
        like: extractor that says which local descriptors.
        images: the images.
    """

    def __init__(self, embedder: Embedder, like: Extractor, images: ImageSet):
        self.embedder, self.like, self.images = embedder, like, images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> Descriptors:
        """Describe some images, each once."""
        known, places = rows.unique(return_inverse=True)
        parts = [known] if torch.is_grad_enabled() else known.split(IMAGES)
        tables = [self._tables(part) for part in parts]
        return unpack(*(torch.cat(each) for each in zip(*tables, strict=True)))[places]

    def all(self) -> Descriptors:
        """Describe all images, without gradients."""
        with torch.inference_mode():
            return self[torch.arange(len(self))]

    def _tables(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.like.tables(self.embedder, [self.images.image(int(row)) for row in rows])
