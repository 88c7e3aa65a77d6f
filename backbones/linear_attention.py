"""Linear attention over the list (Katharopoulos et al. 2020) with query attention: a control without order, decay."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import full_precision, zero_masked
from backbones._interleaved import InterleavedEncoder
from backbones.encoder import ListLayout
from backbones.registry import register

LEAST = 1e-6  # of the sum of weights, for each token


def linear_attention(q: Tensor, k: Tensor, v: Tensor, tokens: int) -> Tensor:
    """Average the values of all tokens with the weights <q_i, k_j>, in time and memory linear in T.

    Args:
        q: (B, heads, T, K), not negative.
        k: (B, heads, T, K), not negative, 0 = takes no part.
        v: (B, heads, T, V).
        tokens: of the list, without batch padding.

    Returns:
        (B, heads, T, V).
    """
    total = q @ k.sum(dim=2)[..., None]
    return q @ (k.mT @ v) / (total + LEAST * tokens)


class LinearAttention(nn.Module):
    """One residual layer in which every token averages the values of all tokens of the list, after a layer norm."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"Width {width} is not a multiple of {heads} heads.")
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.query, self.key, self.value, self.output = (nn.Linear(width, width) for _ in range(4))

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor | None) -> Tensor:
        """Average over the list: tokens (B, T', D), mask (B, T') or None if all are real -> (B, T', D)."""
        normed = self.norm(tokens if mask is None else zero_masked(tokens, mask))
        query, key, value = (
            rearrange(project(normed), "b t (h d) -> b h t d", h=self.heads)
            for project in (self.query, self.key, self.value)
        )
        with torch.autocast(tokens.device.type, enabled=False):
            query, key, value = full_precision(query, key, value)  # a sum over thousands of tokens
            query, key = F.elu(query) + 1, F.elu(key) + 1
            if mask is not None:
                key = key * mask[:, None, :, None]
            mixed = linear_attention(query, key, value, layout.tokens)
        return tokens + self.output(rearrange(mixed, "b h t d -> b t (h d)").to(normed.dtype))


@register(
    "linear_attention",
    mini={"width": 192, "depth": 4, "heads": 6, "expansion": 3.75},
    tiny={"width": 512, "depth": 6, "heads": 8, "expansion": 2},
    small={"width": 768, "depth": 8, "heads": 12, "expansion": 2},
    base={"width": 768, "depth": 16, "heads": 12, "expansion": 2},
)
class LinearAttentionEncoder(InterleavedEncoder):
    """The stack of `mamba` and `rwkv` with linear attention as its mixer.

    Args:
        width: D.
        depth: number of layers.
        heads: attention heads, of the list's and of query attention.
        expansion: feed-forward width over D.
    """

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 6, expansion: float = 4):
        super().__init__(width, depth, lambda: LinearAttention(width, heads), None, heads, expansion)
        self.state_size = width * (width // heads + 1)  # keys times values, and the sum of the keys
