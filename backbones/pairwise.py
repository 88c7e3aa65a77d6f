"""Pairs: each candidate attends to itself and the query, the query to itself. It shows what reading the list adds."""

from __future__ import annotations

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from backbones._blocks import Attention, FeedForward, key_mask
from backbones.encoder import ListLayout, SequenceEncoder
from backbones.registry import register


class PairLayer(nn.Module):
    """The layer of `backbones.transformer`, with every candidate in a list of its own."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention, self.feed_forward = Attention(width, heads), FeedForward(width, inner)

    def forward(self, x: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        h = self.attention_norm(x)
        count = layout.images - 1
        query, query_real = h[:, layout.query], mask[:, layout.query]
        candidates = rearrange(h[:, layout.block :], "b (k s) d -> (b k) s d", k=count)
        real = rearrange(mask[:, layout.block :], "b (k s) -> (b k) s", k=count)
        pairs = torch.cat([candidates, repeat(query, "b s d -> (b k) s d", k=count)], dim=1)
        pairs_real = torch.cat([real, repeat(query_real, "b s -> (b k) s", k=count)], dim=1)
        fused = rearrange(self.attention(candidates, pairs, key_mask(pairs_real)), "(b k) s d -> b (k s) d", k=count)
        x = x + torch.cat([self.attention(query, query, key_mask(query_real)), fused], dim=1)
        return self.feed_forward(x)


@register(
    "pairwise",
    mini={"width": 192, "depth": 4, "heads": 6, "expansion": 5.75},
    tiny={"width": 512, "depth": 6, "heads": 8},
    small={"width": 768, "depth": 8, "heads": 12},
    base={"width": 768, "depth": 16, "heads": 12},
)
class Pairwise(SequenceEncoder):
    """Pre-norm transformer over (query, candidate) pairs; time linear in the number of candidates.

    Args:
        width: D.
        depth: layers.
        heads: attention heads.
        expansion: feed-forward width over D.
    """

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 6, expansion: float = 4):
        super().__init__()
        self.hidden_size, self.state_size = width, 0
        self.layers = nn.ModuleList(PairLayer(width, heads, int(width * expansion)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        list_, padding = tokens[:, : layout.tokens], tokens[:, layout.tokens :]
        for layer in self.layers:
            list_ = self.run(layer, list_, layout, mask[:, : layout.tokens])
        return torch.cat([self.norm(list_), padding], dim=1)
