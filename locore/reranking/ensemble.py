"""The global-local ensemble of AMES (Suma et al. 2024): s = α·g + (1 − α)·σ(t·ℓ)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from locore.utils.progress import track

ALPHAS = np.linspace(0, 1, 21).round(2)
TEMPERATURES = np.concatenate([np.linspace(0.05, 1, 20).round(2), [1.5, 2.0, 3.0, 5.0]])


@dataclass(frozen=True)
class Ensemble:
    """The ensemble of global similarity g and local score ℓ.

    Attributes:
        alpha: α, weight of the global similarity.
        temperature: t, of the raw local score.
    """

    alpha: float
    temperature: float

    def __call__(self, similarities: Tensor, scores: Tensor) -> Tensor:
        """Combine similarities and raw scores, (B, K) each."""
        return self.alpha * similarities + (1 - self.alpha) * torch.sigmoid(self.temperature * scores)

    @classmethod
    def fit(cls, similarities: Tensor, scores: Tensor, quality) -> Ensemble:
        """Choose the best ensemble of the grid on a validation set; the first of equally good ones.

        Args:
            similarities: (Q, K).
            scores: (Q, K).
            quality: of an order (Q, K), higher is better.
        """
        best, chosen = -np.inf, cls(1.0, 1.0)
        for alpha in track(ALPHAS, "choosing the ensemble"):
            for temperature in TEMPERATURES:
                candidate = cls(float(alpha), float(temperature))
                value = quality(candidate(similarities, scores).argsort(dim=1, descending=True, stable=True))
                if value > best:
                    best, chosen = value, candidate
        return chosen
