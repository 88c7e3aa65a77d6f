"""Weights that were pretrained on synthetic lists, as the start of a list-wise re-ranker."""

from __future__ import annotations

from pathlib import Path

import torch

from backbones.registry import suggest
from locore.reranking import weights_file
from locore.reranking.listwise import FIRST_ROW, PROJECTIONS, ListwiseReranker
from locore.reranking.weights_file import WEIGHTS
from locore.utils import safetensors

SYNTHETIC = "synthetic"
CARRIED = Path(__file__).parent / "synthetic"
# The same weights behind a whitening of the descriptors that photographs of groceries have by the extractor for photos.
OF_PHOTOS = Path(__file__).parent / "photos" / "mamba-mini.safetensors"
POSITIONS = "embedding.position.weight"
ALIKE = ("encoder", "global_token", "positions", "matching", "score")  # what shapes of weights do not show


def find(start: str, backbone: str, size: str) -> Path:
    """Return the file of weights that a start means.

    Args:
        start: "synthetic" = the weights that the package carries; else a folder of experiments.pretrain.
        backbone: registered name.
        size: its named size.

    Raises:
        ValueError: the package carries no weights of this backbone and size.
    """
    if start != SYNTHETIC:
        return Path(start).expanduser() / WEIGHTS
    path = CARRIED / f"{backbone}-{size}.safetensors"
    if not path.is_file():
        known = sorted(file.stem for file in CARRIED.glob("*.safetensors"))
        raise ValueError(
            f"There is no synthetic start of '{backbone}', size '{size}'{suggest(path.stem, known)}; make one with "
            "experiments.pretrain, and give its folder as Model.start."
        )
    return path


def start_from(model: ListwiseReranker, path: Path) -> None:
    """Fill all but the projections of descriptors with pretrained weights.

    Args:
        model: of the same backbone, size and head.
        path: of the weights.

    Raises:
        ValueError: the file is missing, damaged, or of another kind of re-ranker.
    """
    tensors, spec, _ = weights_file.read(path)
    for name in ALIKE:
        if (theirs := (spec or {}).get(name)) != (own := model.spec[name]):
            raise ValueError(
                f"'{path}' was pretrained with {name} = {theirs!r}, and this re-ranker has {own!r}; pretrain one like "
                "it with experiments.pretrain, or change the setting."
            )
    started = model.state_dict()
    kept = {name: value for name, value in started.items() if name.startswith(PROJECTIONS)}
    learned, rows = tensors.get(POSITIONS), started[POSITIONS]
    if learned is not None and learned.shape[1:] == rows.shape[1:]:
        # One position for all tokens is all that was learned; further rows are not read.
        kept[POSITIONS] = torch.cat([learned[: FIRST_ROW + 1].to(rows), rows[FIRST_ROW + 1 :]])
    safetensors.fill(model, {**tensors, **kept}, str(path))
