"""PCA of descriptors, whitened or not (Jégou and Chum 2012), fitted once and reused for other images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file

from locore.utils import safetensors


@dataclass(frozen=True)
class Whitening:
    """Projection of rows (N, D) to their first d principal components, L2-normalised.

    Attributes:
        matrix: (d, D).
        offset: (d,).
    """

    matrix: np.ndarray
    offset: np.ndarray

    @classmethod
    def fit(cls, rows: np.ndarray, dim: int, whitened: bool = True) -> Whitening:
        """Fit a projection to rows.

        Args:
            rows: (N, D).
            dim: d.
            whitened: components have the same variance; False = the variance of the rows.

        Raises:
            ValueError: the rows are too few, or narrower than `dim`.
        """
        if not dim <= min(rows.shape[1], len(rows) - 1):
            raise ValueError(
                f"{len(rows)} descriptors of width {rows.shape[1]} cannot be whitened to {dim} dimensions; lower "
                "the number."
            )
        pca = faiss.PCAMatrix(rows.shape[1], dim, -0.5 if whitened else 0.0)
        pca.train(np.ascontiguousarray(rows, dtype=np.float32))
        return cls(
            faiss.vector_to_array(pca.A).reshape(-1, rows.shape[1])[:dim].copy(),
            faiss.vector_to_array(pca.b)[:dim].copy(),
        )

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """Project rows (..., D) of any precision to (..., d) in the same."""
        whitened = rows.astype(np.float32) @ self.matrix.T + self.offset
        whitened /= np.maximum(np.linalg.norm(whitened, axis=-1, keepdims=True), 1e-12)
        return whitened.astype(rows.dtype)


def save(path: Path, whitenings: dict[str, Whitening]) -> None:
    """Write several whitenings by name, atomically."""
    arrays = {f"{name}.{part}": getattr(w, part) for name, w in whitenings.items() for part in ("matrix", "offset")}
    safetensors.write(path, {name: torch.from_numpy(array) for name, array in arrays.items()})


def load(path: Path) -> dict[str, Whitening]:
    """Read whitenings that `save` wrote.

    Raises:
        ValueError: the file is missing or damaged.
    """
    try:
        tensors = load_file(path)
        names = sorted({name.partition(".")[0] for name in tensors})
        return {name: Whitening(tensors[f"{name}.matrix"], tensors[f"{name}.offset"]) for name in names}
    except (OSError, SafetensorError, KeyError) as error:
        raise ValueError(
            f"No whitening in '{path}' ({error}); an extraction with global_dim or local_dim writes one."
        ) from error
