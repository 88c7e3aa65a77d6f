"""Uni-directional query attention (supplement, section B.2), and the stack that interleaves it with another layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from backbones._blocks import Attention, FeedForward, key_mask
from backbones.encoder import ListLayout, SequenceEncoder


class QueryAttention(nn.Module):
    """Transformer block in which every candidate token attends to the tokens of the query block, and to nothing else.

    The query block and batch padding pass through unchanged. The distance of a candidate from the query makes no
    difference, so the block by itself is equivariant to the order of the candidates.

    Args:
        width: D.
        heads: attention heads.
        inner: width of the feed-forward layer.
    """

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention, self.feed_forward = Attention(width, heads), FeedForward(width, inner)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Fuse the query into the candidates.

        Args:
            tokens: (B, T', D).
            layout: where the query block is.
            mask: (B, T') bool, True = real; None = all are real.

        Returns:
            (B, T', D).
        """
        query, candidates, padding = tokens.tensor_split((layout.block, layout.tokens), dim=1)
        seen = None if mask is None else key_mask(mask[:, layout.query])
        fused = candidates + self.attention(self.attention_norm(candidates), self.attention_norm(query), seen)
        return torch.cat([query, self.feed_forward(fused), padding], dim=1)


class InterleavedEncoder(SequenceEncoder):
    """Layers of one kind with query attention after some of them, then a layer norm.

    Args:
        width: D.
        depth: number of layers.
        mixer_layer: makes one layer, (tokens, layout, mask) -> tokens; None = the identity.
        query_attention_layers: the layers, from 0, that query attention follows; None = all.
        heads: attention heads of query attention.
        expansion: feed-forward width of query attention over D.
    """

    def __init__(
        self,
        width: int,
        depth: int,
        mixer_layer: Callable[[], nn.Module] | None,
        query_attention_layers: Sequence[int] | None = None,
        heads: int = 6,
        expansion: float = 4,
    ):
        super().__init__()
        self.hidden_size = width
        chosen = set(range(depth) if query_attention_layers is None else query_attention_layers)
        if not chosen <= set(range(depth)):
            raise ValueError(f"query_attention_layers {sorted(chosen)} must lie in 0 … {depth - 1}.")
        self.layers = nn.ModuleList()
        for i in range(depth):
            if mixer_layer:
                self.layers.append(mixer_layer())
            if i in chosen:
                self.layers.append(QueryAttention(width, heads, int(width * expansion)))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        masked = None if bool(mask.all()) else mask  # most lists are whole, and then the layers save several passes
        for layer in self.layers:
            tokens = self.run(layer, tokens, layout, masked)
        return self.norm(tokens)
