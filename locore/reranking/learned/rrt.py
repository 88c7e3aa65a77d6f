"""Re-ranking Transformers (Tan et al. 2021), under the names of the published weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.pairwise import PairwiseReranker, count_layers, square
from locore.reranking.reranker import rerankers

SCALES = 7  # that DELG's descriptors have
LONGEST = 10_000.0  # wavelength of a position, over 2π
SPAN = 2.0  # that positions of a map are spread over
MINI = {"width": 192, "depth": 5, "heads": 6, "inner": 768}
BASE = {"width": 768, "depth": 6, "heads": 12, "inner": 3072}


def _projection(local_dim: int, width: int) -> nn.Module:
    """Return a projection, or the identity if descriptors are as wide as tokens, as in the published models."""
    return nn.Identity() if local_dim == width else nn.Linear(local_dim, width)


def _encoder(width: int, depth: int, heads: int, inner: int, dropout: float) -> nn.TransformerEncoder:
    layer = nn.TransformerEncoderLayer(width, heads, inner, dropout, batch_first=True)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)


def _start(model: nn.Module) -> None:
    """Initialise matrices and tables as the published training does, so that embeddings do not drown tokens."""
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.xavier_uniform_(parameter)


def _shown(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return the settings that the tensors of both forms show; heads do not show, and are 4 as published."""
    inner, width = tensors["encoder.layers.0.linear1.weight"].shape
    local_dim = tensors["local.weight"].shape[1] if "local.weight" in tensors else width
    layers = count_layers(tensors, "encoder.layers.")
    return {"local_dim": local_dim, "width": width, "depth": layers, "heads": 4, "inner": inner}


@rerankers.register("rrt", mini=MINI, base=BASE)
class RRT(PairwiseReranker):
    """Descriptors with scales as `[CLS] global, locals [SEP] global, locals` (section 3.3, landmarks).

    Args:
        local_dim: width of a local descriptor.
        global_dim: width of a global descriptor.
        width: of the tokens; None = of a local descriptor.
        depth: number of layers.
        heads: attention heads.
        inner: width of the feed-forward layers.
        dropout: of the layers.
    """

    def __init__(
        self,
        local_dim: int,
        global_dim: int,
        width: int | None = None,
        depth: int = 6,
        heads: int = 4,
        inner: int = 1024,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.width = width = width or local_dim
        self.local = _projection(local_dim, width)
        self.encoder = _encoder(width, depth, heads, inner, dropout)
        self.remap = nn.Linear(global_dim, width)
        self.scale_encoder, self.seg_encoder = nn.Embedding(SCALES, width), nn.Embedding(6, width)
        self.classifier = nn.Linear(width, 1)
        _start(self)

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        return _shown(tensors) | {"global_dim": tensors["remap.weight"].shape[1]} if "remap.weight" in tensors else None

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        return [(self.local, descriptors.local), (self.remap, descriptors.global_descriptor)]

    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the logits (N,) of N pairs."""
        parts, real = [], []
        segments = self.seg_encoder.weight
        for image, (opening, global_, local) in ((query, (2, 4, 0)), (candidate, (3, 5, 1))):
            count = len(image.global_descriptor)
            parts += [
                segments[opening].expand(count, 1, -1),
                F.normalize(self.remap(image.global_descriptor), dim=-1)[:, None] + segments[global_],
                F.normalize(self.local(image.local), dim=-1) + self.scale_encoder(image.scale) + segments[local],
            ]
            real += [torch.ones(count, 2, dtype=torch.bool, device=image.mask.device), image.mask]
        tokens = self.encoder(torch.cat(parts, dim=1), src_key_padding_mask=~torch.cat(real, dim=1))
        return self.classifier(tokens[:, 0]).squeeze(1)


@rerankers.register("map_rrt", mini=MINI, base=BASE)
class MapRRT(PairwiseReranker):
    """Feature maps as `[CLS] cells [SEP] cells`, with the position of each cell (section 3.3, metric learning).

    Args:
        local_dim: width of a cell; local descriptors must be a whole square grid.
        width: of the tokens; None = of a cell.
        depth: number of layers.
        heads: attention heads.
        inner: width of the feed-forward layers.
        dropout: of the layers.
    """

    def __init__(
        self,
        local_dim: int,
        width: int | None = None,
        depth: int = 4,
        heads: int = 4,
        inner: int = 1024,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.width = width = width or local_dim
        self.local = _projection(local_dim, width)
        self.encoder = _encoder(width, depth, heads, inner, dropout)
        self.seg_encoder = nn.Embedding(4, width)
        self.classifier = nn.Linear(width, 1)
        _start(self)

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        return _shown(tensors) if "seg_encoder.weight" in tensors and "remap.weight" not in tensors else None

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        return [(self.local, descriptors.local)]

    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the logits (N,) of N pairs.

        Raises:
            ValueError: the local descriptors are not a square grid.
        """
        ours, theirs = self.local(query.local), self.local(candidate.local)
        count, _, width = ours.shape
        places = _places(square(query), width).to(ours)
        segments = self.seg_encoder.weight
        tokens = torch.cat(
            [
                segments[0].expand(count, 1, -1),
                ours + segments[2] + places,
                segments[1].expand(count, 1, -1),
                theirs + segments[3] + places,
            ],
            dim=1,
        )
        return self.classifier(self.encoder(tokens)[:, 0]).squeeze(1)


def _places(side: int, width: int) -> Tensor:
    """Return (side², width) sines and cosines of a cell's row, then of its column, both counted from 1, as in DETR."""
    at = torch.arange(1, side + 1) / (side + 1e-6) * SPAN
    wave = LONGEST ** (2 * (torch.arange(width // 2) // 2) / (width // 2))
    angle = at[:, None] / wave
    code = torch.stack([angle[:, 0::2].sin(), angle[:, 1::2].cos()], dim=2).flatten(1)
    rows, columns = code[:, None].expand(side, side, -1), code[None].expand(side, side, -1)
    return torch.cat([rows, columns], dim=2).flatten(0, 1)
