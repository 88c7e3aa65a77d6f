"""CVNet's verification (Lee et al. 2022): correlations of two feature maps at several scales, read by 4D convolutions.

Under the names of the published weights.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.pairwise import PairwiseReranker, square
from locore.reranking.reranker import rerankers

SCALES = (0.25, 0.5, 1.0)  # of a map's area
# Channels, kernel and stride of the convolutions of each block.
BLOCKS = (
    ((16, 5, 2),),
    ((16, 3, 1), (32, 3, 2)),
    ((32, 3, 1), (32, 3, 1), (64, 3, 2)),
    ((64, 3, 1), (64, 3, 1), (128, 3, 1)),
)


class CentrePivot(nn.Module):
    """A 4D convolution as two of 2D, over the query's dimensions and over the key's (Min et al. 2021, section 4.2)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int):
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2) for _ in range(2))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (N, C, hq, wq, hk, wk); each dimension is divided by the stride."""
        query = _over_query(x[..., :: self.stride, :: self.stride], self.conv1)
        key = _over_key(x[:, :, :: self.stride, :: self.stride], self.conv2)
        return query + key


class Learner(nn.Module):
    """Blocks of 4D convolutions, their mean, and two linear layers."""

    def __init__(self):
        super().__init__()
        inputs = len(SCALES) ** 2
        for number, block in enumerate(BLOCKS, start=1):
            layers: list[nn.Module] = []
            for outputs, kernel, stride in block:
                layers += [CentrePivot(inputs, outputs, kernel, stride), nn.GroupNorm(4, outputs), nn.ReLU()]
                inputs = outputs
            setattr(self, f"block{number}", nn.Sequential(*layers))
        self.mlp = nn.Sequential(nn.Linear(inputs, inputs), nn.ReLU(), nn.Linear(inputs, 2))

    def forward(self, correlation: Tensor) -> Tensor:
        """Classify correlations (N, 9, hq, wq, hk, wk) as no match and match, (N, 2)."""
        for number in range(1, len(BLOCKS) + 1):
            correlation = getattr(self, f"block{number}")(correlation)
        return self.mlp(correlation.flatten(2).mean(2))


@rerankers.register("cvnet", mini={"compressed": 64}, base={"compressed": 256})
class CVNet(PairwiseReranker):
    """Verification by correlations; local descriptors must be a whole square grid, the cells of a feature map.

    Args:
        local_dim: channels of the map.
        compressed: channels that are compared.
    """

    def __init__(self, local_dim: int, compressed: int = 256):
        super().__init__()
        self.width = compressed
        self.conv2ds = nn.ModuleList(nn.Conv2d(local_dim, compressed, 3, padding=1, bias=False) for _ in SCALES)
        self.cv_learner = Learner()

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        if not any(name.startswith("cv_learner.") for name in tensors):
            return None
        compressed, local_dim = tensors["conv2ds.0.weight"].shape[:2]
        return {"local_dim": local_dim, "compressed": compressed}

    def values(self, local_count: int) -> int:
        return len(SCALES) ** 2 * local_count**2

    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return (N,) logits of a match over no match, of N pairs."""
        neither, match = self.classes(_map(query), _map(candidate)).unbind(1)
        return match - neither

    def classes(self, query: Tensor, key: Tensor) -> Tensor:
        """Classify pairs of maps (N, C, hq, wq) and (N, C, hk, wk) as no match and match, (N, 2)."""
        return self.cv_learner(self.correlation(query, key))

    def correlation(self, query: Tensor, key: Tensor) -> Tensor:
        """Correlate maps (N, C, hq, wq) and (N, C, hk, wk) at every pair of scales, (N, 9, hq, wq, hk, wk)."""
        scaled = [
            [F.normalize(conv(_resized(x, scale)), dim=1) for scale, conv in zip(SCALES, self.conv2ds, strict=True)]
            for x in (query, key)
        ]
        found = []
        for ours in scaled[0]:
            for theirs in scaled[1]:
                pair = torch.einsum("ncij,nckl->nijkl", ours, theirs)[:, None]
                pair = _over_query(pair, lambda x: _bilinear(x, query.shape[2:]))
                found.append(_over_key(pair, lambda x: _bilinear(x, key.shape[2:])))
        return torch.cat(found, dim=1).clamp(min=0)


def _over_query(x: Tensor, function) -> Tensor:
    """Apply a function of (M, C, hq, wq) to each cell of the key, in (N, C, hq, wq, hk, wk)."""
    rows, columns = x.shape[4:]
    found = function(rearrange(x, "n c hq wq hk wk -> (n hk wk) c hq wq"))
    return rearrange(found, "(n hk wk) c hq wq -> n c hq wq hk wk", hk=rows, wk=columns)


def _over_key(x: Tensor, function) -> Tensor:
    """Apply a function of (M, C, hk, wk) to each cell of the query, in (N, C, hq, wq, hk, wk)."""
    rows, columns = x.shape[2:4]
    found = function(rearrange(x, "n c hq wq hk wk -> (n hq wq) c hk wk"))
    return rearrange(found, "(n hq wq) c hk wk -> n c hq wq hk wk", hq=rows, wq=columns)


def _resized(x: Tensor, scale: float) -> Tensor:
    """Resize a map (N, C, h, w) to a share of its area."""
    return _bilinear(x, [round(side * scale**0.5) for side in x.shape[2:]])


def _bilinear(x: Tensor, size) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def _map(image: Descriptors) -> Tensor:
    """Return the map (N, C, side, side) of an image's cells, with their original length.

    Raises:
        ValueError: the local descriptors are not a square grid.
    """
    return rearrange(image.local * image.weight[..., None], "n (h w) c -> n c h w", h=square(image))
