"""Full attention: every token attends to every token of the list. Pre-norm (Xiong et al. 2020), time quadratic in T."""

from __future__ import annotations

from torch import Tensor, nn

from backbones._blocks import Attention, FeedForward, key_mask
from backbones.encoder import ListLayout, SequenceEncoder
from backbones.registry import register


class TransformerLayer(nn.Module):
    """Self-attention and feed-forward, each after a layer norm and with a residual."""

    def __init__(self, width: int, heads: int, inner: int):
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention, self.feed_forward = Attention(width, heads), FeedForward(width, inner)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        h = self.attention_norm(x)
        x = x + self.attention(h, h, mask)
        return self.feed_forward(x)


@register(
    "transformer",
    mini={"width": 192, "depth": 4, "heads": 6, "expansion": 5.75},
    tiny={"width": 512, "depth": 6, "heads": 8},
    small={"width": 768, "depth": 8, "heads": 12},
    base={"width": 768, "depth": 16, "heads": 12},
)
class Transformer(SequenceEncoder):
    """Pre-norm transformer without positions of its own.

    Args:
        width: D.
        depth: layers.
        heads: attention heads.
        expansion: feed-forward width over D.
    """

    def __init__(self, width: int = 192, depth: int = 4, heads: int = 6, expansion: float = 4):
        super().__init__()
        self.hidden_size = width
        self.layers = nn.ModuleList(TransformerLayer(width, heads, int(width * expansion)) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        seen = key_mask(mask)
        for layer in self.layers:
            tokens = self.run(layer, tokens, seen)
        return self.norm(tokens)
