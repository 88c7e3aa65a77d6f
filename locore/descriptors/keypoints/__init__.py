"""Keypoints with descriptors of their own, from the images themselves. Adding a detector is one file:

    @keypoints.register("mine")
    class Mine: ...  # a `KeypointDetector`

What installs with `pip install locore` is SIFT; the others read published weights, see `weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from PIL import Image
from torch import Tensor

from backbones.registry import Registry
from locore.descriptors.table import LEADING, MISSING

LONGEST = 1024  # pixels of the longer side; a larger image is made smaller


class Keypoints(NamedTuple):
    """Keypoints of an image, the strongest first.

    Attributes:
        position: (n, 2), x and y in pixels.
        weight: (n,), how sure the detector is.
        descriptors: (n, D), L2-normalised.
    """

    position: Tensor
    weight: Tensor
    descriptors: Tensor


class KeypointDetector(Protocol):
    """Finds keypoints in an image and describes them.

    Attributes:
        width: D, of a descriptor.
    """

    width: int

    @property
    def versions(self) -> dict[str, str]:
        """Versions of what decides on the numbers, by name: caches are made anew where one changes."""
        ...

    def detect(self, image: Image.Image, count: int) -> Keypoints:
        """Find at most `count` keypoints in an RGB image whose longer side is at most `LONGEST`."""
        ...


keypoints: Registry[KeypointDetector] = Registry(
    "keypoint detector", "locore.descriptors.keypoints", "locore.keypoints"
)


@torch.inference_mode()
def describe_keypoints(detector: KeypointDetector, images: Sequence[Image.Image], count: int) -> Tensor:
    """Describe the strongest keypoints in each image; one with fewer keypoints has missing ones.

    Positions are shares of the longer side of the image, so that proportions are kept.

    Args:
        detector: of the keypoints.
        images: RGB.
        count: keypoints of each.

    Returns:
        (N, count, 5 + D), as `write_arrays` has them.
    """
    table = torch.zeros(len(images), count, LEADING + detector.width)
    table[:, :, MISSING] = 1
    for image, rows in zip(images, table, strict=True):
        smaller = image.copy()
        smaller.thumbnail((LONGEST, LONGEST))
        found = detector.detect(smaller, count)
        real = rows[: len(found.position)]
        real[:, :2] = found.position.cpu() / max(smaller.size)
        real[:, MISSING] = 0
        real[:, LEADING - 1] = found.weight.cpu()
        real[:, LEADING:] = found.descriptors.cpu()
    return table
