"""Random changes of training images: cut, rotated, lighter or darker."""

from __future__ import annotations

import hashlib
import threading

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from locore.datasets.benchmark import ImageSet
from locore.descriptors.table import Descriptors

DRAWING = threading.Lock()


class View(ImageSet):
    """Randomly changed images; the change of an image is always the same.

    Args:
        base: the images.
        number: of the view.
    """

    def __init__(self, base: ImageSet, number: int):
        self.base, self.number = base, number
        self.names, self.labels = base.names, base.labels
        self.fingerprint = hashlib.sha256(f"{base.fingerprint}, view {number}, drawn alone".encode()).hexdigest()

    def image(self, index: int) -> Image.Image:
        image = self.base.image(index)
        # torchvision draws from the global generator, which is shared with whoever trains, and with other threads.
        with DRAWING, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(1_000_003 * self.number + index)
            return _changed(image)


def _changed(image: Image.Image) -> Image.Image:
    return v2.Compose(
        [
            v2.RandomAffine(degrees=8, translate=(0.08, 0.08), scale=(0.85, 1.1), shear=4, fill=image.getpixel((0, 0))),
            v2.ColorJitter(brightness=0.2, contrast=0.2),
            v2.RandomApply([v2.GaussianBlur(3)], p=0.3),
        ]
    )(image)


class AnyView:
    """A table that returns the descriptors of a random view of each image, drawn anew each time.

    Args:
        views: descriptors of the same images, one for each view.
    """

    def __init__(self, views: list[Descriptors]):
        self.views = Descriptors.stack(views)

    def __len__(self) -> int:
        return self.views.global_descriptor.shape[1]

    def __getitem__(self, rows: Tensor) -> Descriptors:
        return self.views[torch.randint(len(self.views), rows.shape), rows]
