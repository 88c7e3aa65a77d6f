"""Pool a feature map into one descriptor."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Weighted mean of cells, each weighted by an attention of its own features (DELG: Cao et al. 2020, section 3.3).

    Trained to classify, the attention says which cells matter, and serves as the detector of local descriptors, as in
    AMES.

    Args:
        channels: C of the map.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels))
        self.score = nn.Conv2d(channels, 1, 1)

    def weights(self, features: Tensor) -> Tensor:
        """Return the weights (N, h, w), positive, of the cells of a map (N, C, h, w).

        Raises:
            ValueError: C is not the one that it was trained on.
        """
        if features.shape[1] != self.score.in_channels:
            raise ValueError(
                f"The detector was trained on maps of {self.score.in_channels} channels, and these have "
                f"{features.shape[1]}; leave Extractor.local_stage at None to read the last map."
            )
        return self._weights(self.project(features))

    def _weights(self, projected: Tensor) -> Tensor:
        return F.softplus(self.score(projected.relu())).squeeze(1)

    def forward(self, features: Tensor) -> Tensor:
        projected = self.project(features)
        weights = self._weights(projected)[:, None]
        return (weights * F.normalize(projected, dim=1)).sum((2, 3)) / weights.sum((2, 3))


def _average(features: Tensor) -> Tensor:
    return features.mean((2, 3))


def _maximum(features: Tensor) -> Tensor:
    return features.amax((2, 3))


def _gem(features: Tensor) -> Tensor:
    """Generalised mean (Radenovic et al. 2019, eq. 3) with p = 3."""
    return features.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


# C -> what makes (N, C) of (N, C, h, w), or of a transformer's (N, tokens, C), the class token first
POOLINGS: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "avg": lambda channels: _average,
    "max": lambda channels: _maximum,
    "gem": lambda channels: _gem,
    "avg+max": lambda channels: lambda features: _average(features) + _maximum(features),
    "attention": Attention,
    "class": lambda channels: lambda tokens: tokens[:, 0],
}
