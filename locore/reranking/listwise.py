"""LOCORE: query and candidates as one sequence, every token classified, candidates reordered."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, repeat
from huggingface_hub import ModelHubMixin, hf_hub_download
from torch import Tensor, nn
from torch.nn import functional as F

import backbones
from backbones import ListLayout, SequenceEncoder
from backbones.registry import suggest
from locore.descriptors.table import Descriptors
from locore.reranking import weights_file
from locore.reranking.match_features import COUNTS, Matches
from locore.reranking.reranker import IGNORED, Ranking, Shortlist, check_widths, only_present
from locore.reranking.weights_file import WEIGHTS
from locore.utils import safetensors

FIRST_ROW = 2  # RoBERTa keeps rows 0 and 1 of its position table for other things
POSITIONS = ("absolute", "segment", "none")
SCORES = ("mean", "sum", "first", "last", "product")
MATCHING_STD = 0.3  # of the weights that match numbers enter with: a token is about half descriptor, half match
PROJECTIONS = ("embedding.local.", "embedding.global_.")  # how the weights of descriptors to tokens are named
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh}


def projection(inputs: int, width: int, forced: bool, bottleneck: int | None, activation: str) -> nn.Module:
    """Build the projection of a descriptor to a token: the identity if sizes agree, else linear, or linear, activation,
    linear.
    """
    if bottleneck:
        return nn.Sequential(nn.Linear(inputs, bottleneck), ACTIVATIONS[activation](), nn.Linear(bottleneck, width))
    return nn.Linear(inputs, width) if forced or inputs != width else nn.Identity()


@dataclass(frozen=True)
class Embedded:
    """A shortlist whose descriptors are tokens already, so that windows over it do not embed them again.

    Attributes:
        blocks: (B, 1 + K, S, D) before positions.
        real: (B, 1 + K, S) bool, True = real.
        similarities: as in `Shortlist`.
        present: as in `Shortlist`.
    """

    blocks: Tensor
    real: Tensor
    similarities: Tensor
    present: Tensor | None

    def take(self, places: Tensor) -> Embedded:
        """Select candidates by their places (B, M) on the shortlist."""
        rows, images = torch.arange(len(places), device=places.device)[:, None], F.pad(places + 1, (1, 0))
        present = None if self.present is None else self.present[rows, places]
        return Embedded(self.blocks[rows, images], self.real[rows, images], self.similarities[rows, places], present)


class ListEmbedding(nn.Module):
    """Descriptors to tokens: `[global] [local_1 … local_L] [SEP]` for each image, the query's block first.

    Args:
        width: D.
        local_dim: width of a local descriptor.
        global_dim: width of a global descriptor.
        max_positions: rows of the position table.
        global_token: a block starts with the global descriptor.
        positions: "absolute" = 0 … T-1; "segment" = one for all tokens of an image; "none" = one for all tokens.
        scales: number of scale embeddings.
        dropout: of the tokens.
        force_projection: project also if the sizes agree.
        bottleneck: inner width of a two-layer projection; None = one layer.
        activation: of the two-layer projection.
        matching: what a candidate's tokens are told of its match beside their descriptors: "none"; "query" = how its
            local descriptors match the query's; "list" = also how they match other candidates', see `Matches`.
        kept_locals: local descriptors that are read of an image at most, those that match best; None = all.
    """

    def __init__(
        self,
        width: int,
        local_dim: int,
        global_dim: int,
        max_positions: int,
        global_token: bool,
        positions: str,
        scales: int,
        dropout: float,
        force_projection: bool,
        bottleneck: int | None,
        activation: str,
        matching: str,
        kept_locals: int | None,
    ):
        super().__init__()
        for value, known in ((positions, POSITIONS), (activation, ACTIVATIONS), (matching, COUNTS)):
            if value not in known:
                raise ValueError(f"Unknown setting '{value}' of the re-ranker{suggest(value, known)}")
        if kept_locals is not None and kept_locals < 1:
            raise ValueError(f"kept_locals = {kept_locals} must be at least 1, or None for all.")
        self.global_token, self.positions = global_token, positions
        self.matching, self.kept_locals = matching, kept_locals
        self.local = projection(local_dim, width, force_projection, bottleneck, activation)
        self.global_ = projection(global_dim, width, force_projection, bottleneck, activation)
        self.scale = nn.Embedding(scales, width)
        self.sep, self.pad = nn.Parameter(torch.empty(width)), nn.Parameter(torch.empty(width))
        self.position = nn.Embedding(max_positions + FIRST_ROW, width)
        self.token_type = nn.Parameter(torch.empty(width))
        self.norm, self.dropout = nn.LayerNorm(width, eps=1e-5), nn.Dropout(dropout)
        for table in (self.scale.weight, self.position.weight, self.sep, self.pad, self.token_type):
            nn.init.normal_(table, std=0.02)
        if matching != "none":
            self.match_of_local, self.match_of_image = (nn.Linear(count, width) for count in COUNTS[matching])
            for layer in (self.match_of_local, self.match_of_image):
                nn.init.normal_(layer.weight, std=MATCHING_STD)
                nn.init.zeros_(layer.bias)

    def layout(self, local_count: int, candidates: int) -> ListLayout:
        """Return the layout of lists of K candidates with L local descriptors an image."""
        local_count = min(local_count, self.kept_locals or local_count)
        return ListLayout(block=local_count + 1 + self.global_token, images=1 + candidates)

    def forward(self, shortlist: Shortlist | Embedded) -> tuple[Tensor, ListLayout, Tensor]:
        """Return tokens (B, T, D), their layout, and the mask (B, T)."""
        embedded = self.blocks(shortlist) if isinstance(shortlist, Shortlist) else shortlist
        blocks, real = embedded.blocks, embedded.real
        layout = ListLayout(blocks.shape[2], blocks.shape[1])
        if embedded.present is not None:
            present = F.pad(embedded.present, (1, 0), value=True)[:, :, None]
            blocks, real = torch.where(present[..., None], blocks, self.pad.to(blocks.dtype)), real & present
        row = {
            "absolute": torch.arange(layout.tokens, device=blocks.device),
            "segment": layout.image_of_token(blocks.device),
            "none": torch.zeros(layout.tokens, dtype=torch.long, device=blocks.device),
        }[self.positions] + FIRST_ROW
        learned = self.position.num_embeddings - FIRST_ROW
        needed = {"absolute": layout.tokens, "segment": layout.images, "none": 1}[self.positions]
        if needed > learned:
            raise ValueError(
                f"A list of {layout.images} images and {layout.tokens} tokens needs {needed} positions, but {learned} "
                "are learned; take fewer candidates, or positions 'segment' or 'none'."
            )
        tokens = rearrange(blocks, "b i s d -> b (i s) d") + self.position(row) + self.token_type
        return self.dropout(self.norm(tokens)), layout, rearrange(real, "b i s -> b (i s)")

    def kept_places(self, shortlist: Shortlist, matches: Matches | None = None) -> Tensor | None:
        """Return (B, 1 + K, kept) places of the local descriptors that are read, ascending; None = all are.

        Args:
            shortlist: the lists.
            matches: theirs, if they are known.
        """
        if self.kept_locals is None or self.kept_locals >= shortlist.query.mask.shape[1]:
            return None
        return (matches or Matches(shortlist)).most_alike(self.kept_locals)

    def blocks(self, shortlist: Shortlist) -> Embedded:
        """Embed what does not depend on the place of a candidate."""

        def both(field: str) -> Tensor:
            query, candidates = getattr(shortlist.query, field), getattr(shortlist.candidates, field)
            joined = torch.cat([query[:, None], candidates], dim=1)
            return joined.to(self.sep.dtype) if joined.is_floating_point() else joined

        scale = both("scale")
        if scale.min() < 0 or scale.max() >= self.scale.num_embeddings:
            raise ValueError(
                f"Local descriptors have scales {scale.min()} to {scale.max()}, and the re-ranker knows 0 to "
                f"{self.scale.num_embeddings - 1}; give descriptors of the scales that it was trained on."
            )
        local, real, of_image = self.local(both("local")) + self.scale(scale), both("mask"), None
        matches = None if self.matching == "none" else Matches(shortlist)
        if (places := self.kept_places(shortlist, matches)) is not None:
            real = real.gather(2, places)
            local = local.gather(2, repeat(places, "b i l -> b i l d", d=local.shape[-1]))
        if matches:
            among = self.matching == "list"
            numbers = matches.of_locals(among, None if places is None else places[:, 1:]).to(local.dtype)
            local = torch.cat([local[:, :1], local[:, 1:] + self.match_of_local(numbers)], dim=1)
            of_image = self.match_of_image(matches.of_images(among).to(local.dtype))
        sep = self.sep + 0 * self.pad  # whether or not a candidate is missing, every weight has a gradient
        parts = [local, sep.expand(*real.shape[:2], 1, -1).to(local.dtype)]
        real = F.pad(real, (0, 1), value=True)
        if self.global_token:
            token = self.global_(both("global_descriptor"))
            if of_image is not None:
                token = torch.cat([token[:, :1], token[:, 1:] + of_image], dim=1)
            parts.insert(0, token[:, :, None])
            real = F.pad(real, (1, 0), value=True)
        return Embedded(torch.cat(parts, dim=2), real, shortlist.similarities, shortlist.present)


class ListwiseReranker(nn.Module, ModelHubMixin):
    """Embedding, any sequence encoder, and a head that classifies every token as outside or inside the query's class.

    Args:
        encoder: a sequence encoder, or the name of a registered one.
        local_dim: width of a local descriptor.
        global_dim: width of a global descriptor.
        max_positions: tokens of the longest list.
        size: named size of an encoder that is given by name.
        settings: of an encoder that is given by name.
        global_token: see `ListEmbedding`.
        positions: see `ListEmbedding`.
        score: how the logits of a candidate's tokens become its score: "mean" or "sum" over its block, "first" (the
            global token), "last" (the last local descriptor) or "product". SEP is left out, masked local descriptors
            are not.
        scales: see `ListEmbedding`.
        dropout: of the tokens and of the head.
        force_projection: see `ListEmbedding`.
        bottleneck: see `ListEmbedding`.
        activation: see `ListEmbedding`.
        matching: see `ListEmbedding`.
        kept_locals: see `ListEmbedding`.
        residual: scale at the start of the similarity of the search, less its mean over the list, that is added to the
            log-odds of a candidate; the scale is learned, and the head starts at zero, so that an untrained re-ranker
            keeps the order of the search. None = the head alone scores, as in the paper.
    """

    trained: dict[str, Any] | None = None  # what it was trained on, saved as it was loaded

    def __init__(
        self,
        encoder: SequenceEncoder | str,
        local_dim: int,
        global_dim: int,
        max_positions: int = 5120,
        size: str = "mini",
        settings: Mapping[str, Any] | None = None,
        global_token: bool = True,
        positions: str = "absolute",
        score: str = "mean",
        scales: int = 3,
        dropout: float = 0.0,
        force_projection: bool = False,
        bottleneck: int | None = None,
        activation: str = "gelu",
        matching: str = "none",
        kept_locals: int | None = None,
        residual: float | None = None,
    ):
        super().__init__()
        if score not in SCORES:
            raise ValueError(f"Unknown score '{score}'{suggest(score, SCORES)}")
        self.spec = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }  # what rebuilds it, saved beside the weights
        self._hub_mixin_config = None  # no second file: the weights' own says what rebuilds it
        self.encoder = backbones.create(encoder, size, **(settings or {})) if isinstance(encoder, str) else encoder
        self.width = width = self.encoder.hidden_size
        self.embedding = ListEmbedding(
            width,
            local_dim,
            global_dim,
            max_positions,
            global_token,
            positions,
            scales,
            dropout,
            force_projection,
            bottleneck,
            activation,
            matching,
            kept_locals,
        )
        self.dropout, self.head = nn.Dropout(dropout), nn.Linear(width, 2)
        if residual is not None:
            if not 0 < residual < math.inf:
                raise ValueError(f"The residual's scale {residual} must be a number above 0, or None.")
            self.log_residual = nn.Parameter(torch.tensor(math.log(residual)))
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)
        self.score = score

    def _save_pretrained(self, save_directory: Path) -> None:
        weights_file.write(self, save_directory / WEIGHTS, self.spec, self.trained)

    @classmethod
    def _from_pretrained(  # type: ignore[override]
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        **_: Any,
    ) -> ListwiseReranker:
        folder = Path(model_id)
        path = folder / WEIGHTS
        if not folder.is_dir():
            fetched = hf_hub_download(
                model_id,
                WEIGHTS,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
            )
            path = Path(fetched)
        tensors, spec, trained = weights_file.read(path)
        if spec is None or "method" in spec:
            raise ValueError(f"'{path}' is not a list-wise re-ranker of ours; load it with locore.load.")
        model = cls(**spec)
        safetensors.fill(model, tensors, str(path))
        model.trained = trained
        return model.eval()

    def forward(self, shortlist: Shortlist | Embedded) -> Tensor:
        """Return the logits (B, 1 + K, S, 2) of every token."""
        logits = self.head(self.dropout(self.encode(shortlist)))
        return logits if self.spec["residual"] is None else logits + self._residual(shortlist)[:, :, None].to(logits)

    def _residual(self, shortlist: Shortlist | Embedded) -> Tensor:
        """Return (B, 1 + K, 2) what the similarity of the search adds to both logits of an image; 0 for the query."""
        similarities, present = shortlist.similarities.float(), shortlist.present
        real = torch.ones_like(similarities) if present is None else present.float()
        mean = (similarities * real).sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        half = F.pad((similarities - mean) * real * self.log_residual.exp() / 2, (1, 0))  # of the log-odds, to each
        return torch.stack([-half, half], dim=-1)

    @torch.inference_mode()
    def embedded(self, shortlist: Shortlist) -> Embedded:
        """Embed a shortlist of which parts will be re-ranked again and again."""
        return self.embedding.blocks(shortlist)

    def projections(self, descriptors: Descriptors) -> list[tuple[nn.Module, Tensor]]:
        """Return the projections of descriptors to tokens, each with the rows that it reads."""
        return [(self.embedding.local, descriptors.local), (self.embedding.global_, descriptors.global_descriptor)]

    def encode(self, shortlist: Shortlist | Embedded) -> Tensor:
        """Return the hidden states (B, 1 + K, S, D) of every token."""
        tokens, layout, mask = self.embedding(shortlist)
        return rearrange(self.encoder(tokens, layout, mask), "b (i s) d -> b i s d", i=layout.images)

    @staticmethod
    def loss(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> Tensor:
        """Compute the cross-entropy over all tokens of the candidates' blocks, SEP and masked local descriptors
        included.

        Args:
            logits: (B, 1 + K, S, 2).
            labels: (B, K) long, 1 = right, 0 = wrong, `IGNORED` = not counted.
            smoothing: of the labels.
        """
        targets = repeat(labels, "b k -> (b k s)", s=logits.shape[2])
        tokens = rearrange(logits[:, 1:], "b k s c -> (b k s) c").float()
        return F.cross_entropy(tokens, targets, ignore_index=IGNORED, label_smoothing=smoothing)

    def scores(self, logits: Tensor) -> Tensor:
        """Reduce the positive logits of logits (B, 1 + K, S, 2) to scores (B, K)."""
        tokens = logits[:, 1:, :-1, 1].float()
        return {
            "mean": lambda: tokens.mean(-1),
            "sum": lambda: tokens.sum(-1),
            "first": lambda: tokens[..., 0],
            "last": lambda: tokens[..., -1],
            "product": lambda: tokens.prod(-1),
        }[self.score]()

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist | Embedded) -> Ranking:
        """Sort candidates by score; those not present come last, with score -inf."""
        if isinstance(shortlist, Shortlist):
            check_widths(self, shortlist)
        training = self.training
        self.eval()
        scores = self.scores(self(shortlist))
        self.train(training)
        return Ranking.by(only_present(scores, shortlist.present))
