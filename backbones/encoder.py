"""The contract of a sequence encoder, and the layout that says what each token is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass(frozen=True)
class ListLayout:
    """A list as a sequence: one block of tokens for each image, the query's first, SEP last in each block.

    Attributes:
        block: S, tokens an image.
        images: 1 + K, the query and its candidates.
    """

    block: int
    images: int

    def __post_init__(self):
        if self.block < 2 or self.images < 2:
            raise ValueError(
                f"A list needs a query, a candidate and two tokens an image, got block={self.block} and "
                f"images={self.images}."
            )

    @property
    def tokens(self) -> int:
        """T, the length of the sequence without batch padding."""
        return self.block * self.images

    @property
    def query(self) -> slice:
        """The tokens of the query's block."""
        return slice(0, self.block)

    def sep(self, device: torch.device | str | None = None) -> Tensor:
        """Return (T,) bool, True at the SEP of every block."""
        return torch.arange(self.tokens, device=device) % self.block == self.block - 1

    def image_of_token(self, device: torch.device | str | None = None) -> Tensor:
        """Return (T,) long: 0 for the query's tokens, 1 … K for the candidates'."""
        return torch.arange(self.tokens, device=device) // self.block


class SequenceEncoder(nn.Module, ABC):
    """Reads a query and all its candidates as one sequence; `backbones.conformance` checks the contract.

    Attributes:
        hidden_size: D, the width of the tokens that it takes and returns.
        gradient_checkpointing: recompute each layer in the backward pass instead of keeping its activations.
        state_size: values that a layer carries from image to image, in each direction; 0 = candidates know nothing of
            each other; None = it carries no state: attention reads all tokens.
    """

    hidden_size: int
    state_size: int | None = None
    gradient_checkpointing: bool = False

    @abstractmethod
    def forward(self, tokens: Tensor, layout: ListLayout, mask: Tensor) -> Tensor:
        """Encode a batch of lists.

        Args:
            tokens: (B, T', D) with T' >= layout.tokens; tokens past the layout are batch padding.
            layout: where the blocks, the query and the SEPs are.
            mask: (B, T') bool, True = real. Nothing flows out of a masked token.

        Returns:
            (B, T', D).
        """

    def run(self, layer: nn.Module, *inputs) -> Tensor:
        """Apply a layer, recomputed in the backward pass if `gradient_checkpointing` is set."""
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer, *inputs, use_reentrant=False)
        return layer(*inputs)
