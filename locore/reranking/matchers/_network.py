"""The network of LightGlue (Lindenberger et al., ICCV 2023), under the published names, for pairs of several lengths.

Positions are encoded by rotations, so only their differences count, and only within an image.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F


class SelfBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.Wqkv = nn.Linear(width, 3 * width)
        self.out_proj = nn.Linear(width, width)
        self.ffn = feed_forward(width)

    def forward(self, x: Tensor, angles: Tensor, mask: Tensor) -> Tensor:
        query, key, value = rearrange(self.Wqkv(x), "n t (h d p) -> p n h t d", h=self.heads, p=3)
        query, key = rotated(query, angles), rotated(key, angles)
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return x + self.ffn(torch.cat([x, self.out_proj(rearrange(seen, "n h t d -> n t (h d)"))], dim=-1))


class CrossBlock(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.to_qk = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.Linear(width, width)
        self.ffn = feed_forward(width)

    def forward(self, x: Tensor, other: Tensor, mask: Tensor) -> Tensor:
        """Read the descriptors of the other image, of which `mask` says which are real."""

        def heads(tokens: Tensor) -> Tensor:
            return rearrange(tokens, "n t (h d) -> n h t d", h=self.heads)

        query, key, value = heads(self.to_qk(x)), heads(self.to_qk(other)), heads(self.to_v(other))
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None])
        return x + self.ffn(torch.cat([x, self.to_out(rearrange(seen, "n h t d -> n t (h d)"))], dim=-1))


class Layer(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.self_attn = SelfBlock(width, heads)
        self.cross_attn = CrossBlock(width, heads)

    def forward(self, one: Side, two: Side) -> tuple[Side, Side]:
        one, two = (side.but(self.self_attn(side.x, side.angles, side.mask)) for side in (one, two))
        return one.but(self.cross_attn(one.x, two.x, two.mask)), two.but(self.cross_attn(two.x, one.x, one.mask))


class Side:
    """The keypoints of one image of each pair.

    Attributes:
        x: (N, T, width).
        angles: (N, T, head width / 2), of the rotations.
        mask: (N, T) bool, True = real.
    """

    def __init__(self, x: Tensor, angles: Tensor, mask: Tensor):
        self.x, self.angles, self.mask = x, angles, mask

    def but(self, x: Tensor) -> Side:
        return Side(x, self.angles, self.mask)


class Assignment(nn.Module):
    """The last step: probabilities that keypoints are partners."""

    def __init__(self, width: int):
        super().__init__()
        self.matchability = nn.Linear(width, 1)
        self.final_proj = nn.Linear(width, width)

    def forward(self, one: Side, two: Side) -> Tensor:
        """Return the logarithms (N, n, m) of the probabilities; -inf where a side is missing."""
        ours, theirs = (self.final_proj(side.x) / side.x.shape[-1] ** 0.25 for side in (one, two))
        real = one.mask[:, :, None] & two.mask[:, None]
        alike = (ours @ theirs.mT).masked_fill(~real, -torch.inf)
        found = F.log_softmax(alike, dim=2) + F.log_softmax(alike, dim=1)
        found = found + F.logsigmoid(self.matchability(one.x)) + F.logsigmoid(self.matchability(two.x)).mT
        return found.masked_fill(~real, -torch.inf)


class Network(nn.Module):
    """Assigns the keypoints of pairs of images to each other.

    Args:
        local_dim: width of a descriptor.
        width: of the layers.
        depth: number of layers.
        heads: of attention.
    """

    def __init__(self, local_dim: int, width: int, depth: int, heads: int):
        super().__init__()
        self.input_proj = nn.Linear(local_dim, width)
        self.posenc = nn.ModuleDict({"Wr": nn.Linear(2, width // heads // 2, bias=False)})
        self.transformers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.assignment = Assignment(width)

    def forward(
        self, descriptors: tuple[Tensor, Tensor], positions: tuple[Tensor, Tensor], masks: tuple[Tensor, Tensor]
    ):
        """Return the logarithms (N, n, m) of the probabilities that keypoints are partners.

        Args:
            descriptors: (N, n, D) and (N, m, D), L2-normalised.
            positions: (N, n, 2) and (N, m, 2), as shares of the longer side of the image.
            masks: (N, n) and (N, m) bool, True = real.
        """
        one, two = (
            Side(self.input_proj(local), self.posenc["Wr"](2 * position), mask)
            for local, position, mask in zip(descriptors, positions, masks, strict=True)
        )
        for layer in self.transformers:
            one, two = layer(one, two)
        return self.assignment(one, two)


def feed_forward(width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(2 * width, 2 * width), nn.LayerNorm(2 * width), nn.GELU(), nn.Linear(2 * width, width)
    )


def rotated(x: Tensor, angles: Tensor) -> Tensor:
    """Rotate neighbouring channels of x (N, heads, T, d) by angles (N, T, d / 2)."""
    cosine, sine = (each.repeat_interleave(2, dim=-1)[:, None] for each in (angles.cos(), angles.sin()))
    even, odd = x[..., ::2], x[..., 1::2]
    return x * cosine + torch.stack([-odd, even], dim=-1).flatten(-2) * sine


def published_tensors(tensors: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Return the state dict of `Network` from a published file: older names are renamed, the assignment is that of the
    last layer, and what ends early or is not used is left out."""
    found = {}
    for name, value in tensors.items():
        name = name.removeprefix("matcher.")
        kind, _, rest = name.partition(".")
        if kind in ("self_attn", "cross_attn"):
            layer, _, rest = rest.partition(".")
            name = f"transformers.{layer}.{kind}.{rest}"
        if name.startswith(last := f"log_assignment.{depth - 1}."):
            name = f"assignment.{name.removeprefix(last)}"
        if name.split(".")[0] in ("input_proj", "posenc", "transformers", "assignment") and name != "assignment.r":
            found[name] = value
    return found
