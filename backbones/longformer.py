"""Longformer (Beltagy et al. 2020) as LOCORE uses it: the query's tokens and every SEP are global tokens."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from backbones._blocks import in_slices, zero_masked
from backbones.encoder import ListLayout, SequenceEncoder
from backbones.ops.window_attention import Window, window_attention
from backbones.registry import register


class LongformerAttention(nn.Module):
    """Window attention with global tokens, which have projections of their own and attend to every token."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"Width {width} must be a multiple of {heads} heads.")
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.query_global, self.key_global, self.value_global = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        nn.init.uniform_(self.query.weight, -((3 / width) ** 0.5), (3 / width) ** 0.5)
        # Equal queries and keys at the start, see backbones._blocks.Attention; global ones are copies, as published.
        for other in (self.key, self.query_global, self.key_global):
            other.load_state_dict(self.query.state_dict())
        self.value_global.load_state_dict(self.value.state_dict())

    def forward(self, x: Tensor, window: Window) -> Tensor:
        """Attend within windows: x (B, T, D) -> (B, T, D), before the output projection."""

        def heads(*projections: nn.Linear) -> tuple[Tensor, ...]:
            """Compute several projections in one product; each as (B, heads, T, d)."""
            weight, bias = (torch.cat([getattr(p, name) for p in projections]) for name in ("weight", "bias"))
            projected = F.linear(x, weight, bias)
            return rearrange(projected, "b t (p h d) -> p b h t d", p=len(projections), h=self.heads).unbind(0)

        query, key, value = heads(self.query, self.key, self.value)
        mixed = window_attention(query, key, value, window)
        query = rearrange(self.query_global(x[:, window.index]), "b g (h d) -> b h g d", h=self.heads)
        key, value = heads(self.key_global, self.value_global)
        rows = F.scaled_dot_product_attention(query, key, value, window.keys, dropout_p=window.dropout)
        mixed, rows = (rearrange(t, "b h t d -> b t h d") for t in (mixed, rows))
        mixed = rearrange(mixed.index_copy(1, window.index, rows.to(mixed.dtype)), "b t h d -> b t (h d)")
        # A masked token gathers nothing, as published: its score comes from its own embedding.
        return mixed if window.keys is None else zero_masked(mixed, window.real)


class LongformerLayer(nn.Module):
    """BERT's post-norm layer around `LongformerAttention`."""

    def __init__(self, width: int, heads: int, inner: int, dropout: float):
        super().__init__()
        self.attention = LongformerAttention(width, heads)
        self.attention_norm, self.output_norm = nn.LayerNorm(width, eps=1e-5), nn.LayerNorm(width, eps=1e-5)
        self.intermediate, self.output = nn.Linear(width, inner), nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, window: Window) -> Tensor:
        return in_slices(self._behind_attention, x, self.attention(x, window))

    def _behind_attention(self, x: Tensor, mixed: Tensor) -> Tensor:
        """What each token does by itself."""
        x = self.attention_norm(x + self.dropout(self.attention.output(mixed)))
        return self.output_norm(x + self.dropout(self.output(F.gelu(self.intermediate(x)))))


@register(
    "longformer",
    mini={"width": 192, "depth": 4, "heads": 6, "window": 64, "expansion": 4.25},
    tiny={"width": 512, "depth": 4, "heads": 8, "window": 1024},
    small={"width": 768, "depth": 6, "heads": 12, "window": 512},
    base={"width": 768, "depth": 12, "heads": 12, "window": 512},
)
class Longformer(SequenceEncoder):
    """Longformer encoder; tiny, small and base are the paper's (Table A).

    Args:
        width: D.
        depth: layers.
        heads: attention heads.
        window: tokens, both sides together.
        expansion: feed-forward width over D.
        dropout: of each residual branch.
        attention_dropout: of the attention weights.
    """

    def __init__(
        self,
        width: int = 192,
        depth: int = 4,
        heads: int = 6,
        window: int = 64,
        expansion: float = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        if not 0 <= attention_dropout < 1:
            raise ValueError(f"longformer.attention_dropout {attention_dropout} must be in [0, 1).")
        if window < 2 or window % 2:
            raise ValueError(f"longformer.window {window} must be even and at least 2.")
        self.hidden_size, self.reach, self.attention_dropout = width, window // 2, attention_dropout
        self.layers = nn.ModuleList(
            LongformerLayer(width, heads, int(width * expansion), dropout) for _ in range(depth)
        )

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        is_global = layout.sep(tokens.device)
        is_global[layout.query] = True
        is_global = F.pad(is_global, (0, tokens.shape[1] - layout.tokens))
        window = Window.plan(mask, is_global, self.reach, self.attention_dropout if self.training else 0.0)
        for layer in self.layers:
            tokens = self.run(layer, tokens, window)
        return tokens
