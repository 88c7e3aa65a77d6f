"""AMES (Suma et al. 2024), under the names of the published weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.learned._binary import inferred, remapping
from locore.reranking.pairwise import PairwiseReranker, count_layers, start_linear
from locore.reranking.reranker import rerankers


class Layer(nn.Module):
    """Attention within each image, attention across the two images, feed-forward; each followed by its norm.

    The matching token attends to all tokens of both.
    """

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.self_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attn = nn.MultiheadAttention(width, heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(width, inner), nn.Linear(inner, width)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, tokens: Tensor, other: Tensor, same: Tensor, missing: Tensor) -> Tensor:
        """Transform tokens (N, T, D), given pairs of tokens of different images and of the same (T, T) bool, and
        missing (N, T).
        """
        for attention, norm, blocked in ((self.self_attn, self.norm1, other), (self.cross_attn, self.norm2, same)):
            found, _ = attention(
                tokens, tokens, tokens, attn_mask=blocked, key_padding_mask=missing, need_weights=False
            )
            tokens = norm(tokens + found)
        return self.norm3(tokens + self.linear2(self.linear1(tokens).relu()))


class Decoder(nn.Module):
    """Layers in a row."""

    def __init__(self, width: int, depth: int, heads: int, inner: int):
        super().__init__()
        self.layers = nn.ModuleList(Layer(width, heads, inner) for _ in range(depth))

    def forward(self, tokens: Tensor, *masks: Tensor) -> Tensor:
        for layer in self.layers:
            tokens = layer(tokens, *masks)
        return tokens


@rerankers.register(
    "ames",
    mini={"width": 192, "depth": 4, "heads": 6, "inner": 768},
    base={"width": 768, "depth": 5, "heads": 12, "inner": 3072},
)
class AMES(PairwiseReranker):
    """Local descriptors of both images, and a token that learns whether they match.

    Args:
        local_dim: width of a local descriptor.
        width: of the tokens.
        depth: number of layers.
        heads: attention heads.
        inner: width of the feed-forward layers.
        bits: of binarised local descriptors, as in the distilled weights; None = they are not binarised.
    """

    def __init__(
        self,
        local_dim: int,
        width: int = 128,
        depth: int = 5,
        heads: int = 2,
        inner: int = 1024,
        bits: int | None = None,
    ):
        super().__init__()
        self.width, self.bits = width, bits
        self.mtc_token = nn.Parameter(nn.init.trunc_normal_(torch.empty(width), std=0.02))
        self.remap_local = remapping(local_dim, width, bits)
        self.decoder = Decoder(width, depth, heads, inner)
        self.classifier = nn.Linear(width, 1)
        start_linear(self, partial(nn.init.trunc_normal_, std=0.02))

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        if "mtc_token" not in tensors:
            return None
        shown = inferred(tensors)
        inner = len(tensors["decoder.layers.0.linear1.weight"])
        # Heads of size 64, as the published ones have; another number cannot be seen and has to be given.
        heads, layers = max(1, len(tensors["mtc_token"]) // 64), count_layers(tensors, "decoder.layers.")
        return {**shown, "depth": layers, "heads": heads, "inner": inner}

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        return [(self.remap_local[0], F.normalize(descriptors.local, dim=-1))]

    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return the logits (N,) of N pairs."""
        ours, theirs = (self.remap_local(F.normalize(image.local, dim=-1)) for image in (query, candidate))
        if not self.training and self.bits is None:  # a gallery is stored in half precision, or as bits
            theirs = theirs.half().to(ours.dtype)
        asking = self.mtc_token.expand(len(ours), 1, -1)
        missing = F.pad(~torch.cat([query.mask, candidate.mask], dim=1), (1, 0), value=False)
        image = torch.tensor([-1] + [0] * ours.shape[1] + [1] * theirs.shape[1], device=ours.device)
        both = (image[:, None] >= 0) & (image >= 0)
        same = both & (image[:, None] == image)
        tokens = self.decoder(torch.cat([asking, ours, theirs], dim=1), both & ~same, same, missing)
        return self.classifier(tokens[:, 0]).squeeze(1)
