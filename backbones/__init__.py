"""Sequence encoders behind one contract: (tokens, layout, mask) -> tokens."""

from backbones.encoder import ListLayout, SequenceEncoder
from backbones.registry import available, create, register, sizes

__all__ = ["ListLayout", "SequenceEncoder", "available", "create", "register", "sizes"]
