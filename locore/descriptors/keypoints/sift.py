"""SIFT by OpenCV: local descriptors from the images themselves, made for geometric verification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from locore.descriptors.table import LEADING, MISSING

WIDTH = 128
LONGEST = 1024  # pixels of the longer side; a larger image is made smaller


def version() -> str:
    """Return OpenCV's version, since another one may find other keypoints."""
    import cv2

    return cv2.__version__


def features(images: Sequence[Image.Image], count: int) -> Tensor:
    """Describe the keypoints of the strongest response in each image.

    Descriptors (Lowe 2004) are the roots of their L1-normalised values (Arandjelović and Zisserman 2012). An image with
    fewer keypoints has missing ones.

    Args:
        images: the images.
        count: keypoints of each.

    Returns:
        (N, count, 5 + 128), as `write_arrays` has them.
    """
    import cv2  # a second that nobody else need wait

    detector = cv2.SIFT.create(nfeatures=count)
    found = np.zeros((len(images), count, LEADING + WIDTH), dtype=np.float32)
    found[:, :, MISSING] = 1
    for image, rows in zip(images, found, strict=True):
        grey = image.convert("L")
        grey.thumbnail((LONGEST, LONGEST))
        points, described = detector.detectAndCompute(np.asarray(grey), None)
        strongest = sorted(range(len(points)), key=lambda i: -points[i].response)[:count]
        for row, i in zip(rows, strongest, strict=False):
            row[:2] = points[i].pt / np.array(grey.size)
            row[2:LEADING] = 0, 0, points[i].response
            row[LEADING:] = np.sqrt(described[i] / max(described[i].sum(), 1e-12))
    return torch.from_numpy(found)
