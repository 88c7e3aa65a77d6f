"""R2Former's re-ranking head (Zhu et al. 2023), under the names of the published weights."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.table import Descriptors
from locore.reranking.pairwise import PairwiseReranker, count_layers, start_linear
from locore.reranking.reranker import rerankers

PAIR = 7  # numbers of a pair of locals: x, y, weight of either, and their similarity


@rerankers.register(
    "r2former", mini={"width": 192, "depth": 3, "heads": 6}, base={"width": 768, "depth": 4, "heads": 12}
)
class R2Former(PairwiseReranker):
    """One transformer turns each local descriptor's best matches into a token, another turns all tokens into a score
    (section 3.3).

    Args:
        width: of the tokens.
        depth: number of layers of the second transformer.
        pair_depth: number of layers of the first transformer.
        heads: attention heads.
        matches: number of matches of each local descriptor.
        patches: rows of a position table that the published weights contain and nothing uses.
    """

    def __init__(
        self, width: int = 384, depth: int = 4, pair_depth: int = 2, heads: int = 6, matches: int = 5, patches: int = 16
    ):
        super().__init__()
        self.matches, self.width = matches, width
        self.cls_token, self.cls_token_2 = (
            nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, width), std=0.02)) for _ in range(2)
        )
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))
        self.ratio = nn.Parameter(torch.full((1,), 0.5))
        self.blocks, self.blocks_2 = (
            nn.ModuleList(Block(width, heads, qkv_bias=True, norm_layer=nn.LayerNorm) for _ in range(n))
            for n in (depth, pair_depth)
        )
        self.decoder_norm = nn.LayerNorm(width)
        self.pair_head, self.pair_head_2 = nn.Linear(PAIR, width), nn.Linear(width, width)
        self.decoder_pred = nn.Linear(width, 2)
        start_linear(self, nn.init.xavier_uniform_)

    @classmethod
    def infer_settings(cls, tensors: dict[str, Tensor]) -> dict[str, Any] | None:
        if "pair_head.weight" not in tensors:
            return None
        return {
            "width": (width := len(tensors["pair_head.weight"])),
            "heads": max(1, width // 64),
            "depth": count_layers(tensors, "blocks."),
            "pair_depth": count_layers(tensors, "blocks_2."),
            "patches": tensors["decoder_pos_embed"].shape[1] - 1,
        }

    def values(self, local_count: int) -> int:
        return 2 * local_count * (1 + self.matches) * self.width

    def pairs(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return (N,) scores of N pairs: global similarity and probability of a match, with a learned weight."""
        share = self.ratio.clamp(0.1, 0.9)
        alike = F.cosine_similarity(query.global_descriptor, candidate.global_descriptor, dim=1)
        return alike * share + self.logits(query, candidate).sigmoid() * (1 - share)

    def logits(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return (N,) logits of a match over no match, of N pairs."""
        neither, match = self.classes(query, candidate).unbind(1)
        return match - neither

    def classes(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Classify N pairs as no match and match, (N, 2)."""
        pairs = self._best(query, candidate)
        tokens = self.pair_head(pairs) + places(pairs[..., 3:5], self.pair_head.out_features)
        tokens = self._transformed(rearrange(tokens, "n l m d -> (n l) m d"), self.cls_token_2, self.blocks_2)
        tokens = rearrange(self.pair_head_2(tokens), "(n l) d -> n l d", n=len(pairs))
        tokens = tokens + places(pairs[:, :, 0, 0:2], tokens.shape[2])
        return self.decoder_pred(self._transformed(tokens, self.cls_token, self.blocks))

    def _best(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return (N, 2 L, matches, 7): the pairs of each local descriptor with its most similar ones, the query's
        first; in every pair the query's numbers come first, as in the published code.
        """
        numbers = [torch.cat([i.position, _attention(i)[..., None]], dim=-1).clamp(0, 1) for i in (query, candidate)]
        alike = F.normalize(query.local, dim=-1) @ F.normalize(candidate.local, dim=-1).mT
        alike = alike.masked_fill(~(query.mask[:, :, None] & candidate.mask[:, None, :]), -1.0)
        rows = torch.arange(len(alike), device=alike.device)[:, None, None]
        found = []
        for own, table in ((0, alike), (1, alike.mT)):
            near, places_ = table.topk(min(self.matches, table.shape[2]), dim=2)
            pair = [numbers[own][:, :, None].expand(-1, -1, near.shape[2], -1), numbers[1 - own][rows, places_]]
            found.append(torch.cat([pair[own], pair[1 - own], near[..., None]], dim=-1))
        return torch.cat(found, dim=1)

    def _transformed(self, tokens: Tensor, asking: Tensor, blocks: nn.ModuleList) -> Tensor:
        """Return (N, D), the output at a token that is put before tokens (N, T, D)."""
        tokens = torch.cat([asking.expand(len(tokens), -1, -1), tokens], dim=1)
        for block in blocks:
            tokens = block(tokens)
        return self.decoder_norm(tokens)[:, 0]


def _attention(image: Descriptors) -> Tensor:
    """Return the weights (N, L) of the local descriptors, divided by the largest if the detector has no upper bound."""
    return image.weight / image.weight.amax(dim=1, keepdim=True).clamp(min=1)


def places(position: Tensor, width: int) -> Tensor:
    """Encode positions (..., 2) as (..., width): sines then cosines of x, and of y."""
    wave = 10_000.0 ** (-torch.arange(width // 4, device=position.device, dtype=position.dtype) / (width / 4))
    angle = position[..., None] * wave
    return torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
