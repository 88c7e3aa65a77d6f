"""Describe training images by embedders that have not seen their classes, as no embedder has seen a test class.

An embedder that was trained on a class makes the lists of that class unrealistically easy. So one is trained on each
half of the training classes, and describes the other half.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from locore.datasets.benchmark import ImageSet
from locore.descriptors.extractor import Extractor
from locore.descriptors.table import Descriptors

WHOLE = "embedder.safetensors"  # fitted on all training classes
FITTED_ON = ("fitted-on-half0.safetensors", "fitted-on-half1.safetensors")
CELLS = 50_000  # local descriptors that a turn is estimated from


def halves(labels: np.ndarray) -> np.ndarray:
    """Return (N,) 0 or 1, the half of each image's class."""
    classes = np.random.default_rng(1).permutation(np.unique(labels))
    return np.isin(labels, classes[len(classes) // 2 :]).astype(np.int64)


def has_halves(folder: Path) -> bool:
    """Return whether a folder of `experiments.embed` has the two embedders of halves."""
    return all((folder / file).exists() for file in FITTED_ON)


def describe_unseen(
    folder: Path, like: Extractor, images: ImageSet, in_training: bool
) -> tuple[Descriptors, np.ndarray]:
    """Describe images by the embedders in a folder.

    The embedders of halves are rotated onto the one of all classes, since that one describes the test images.

    Args:
        folder: of `experiments.embed`.
        like: extractor with the model, image size and local descriptors.
        images: the images.
        in_training: they are the images that the embedders were trained on.

    Returns:
        The descriptors, and (N,) the number of the embedder that made each.
    """

    def by(file: str) -> Descriptors:
        return replace(like, weights=str(folder / file)).extract(images)

    whole = by(WHOLE)
    if not (in_training and has_halves(folder)):
        return whole, np.zeros(len(images), dtype=np.int64)
    made_by = 1 - halves(images.labels)
    first, second = (turned(by(file), whole) for file in FITTED_ON)
    return Descriptors.where(torch.from_numpy(made_by == 0), first, second), made_by


def turned(descriptors: Descriptors, like: Descriptors) -> Descriptors:
    """Rotate global and local descriptors, each to lie nearest to those of another embedder of the same images.

    Orthogonal Procrustes (Schoenemann 1966): inner products among the descriptors do not change.

    Args:
        descriptors: that are rotated.
        like: of the other embedder.
    """
    return replace(
        descriptors,
        global_descriptor=_turned(descriptors.global_descriptor, like.global_descriptor),
        local=_turned(descriptors.local.flatten(0, 1), like.local.flatten(0, 1)).view_as(descriptors.local),
    )


def _turned(rows: Tensor, like: Tensor) -> Tensor:
    """Rotate rows (M, D) to lie nearest to others."""
    some = torch.from_numpy(np.random.default_rng(0).permutation(len(rows))[:CELLS])
    u, _, vh = torch.linalg.svd(rows[some].double().T @ like[some].double())
    return (rows.float() @ (u @ vh).float()).to(like.dtype)
