"""Pretrain a list-wise re-ranker on synthetic lists, as a start that any descriptors can be put in front of."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.settings import check_types
from locore.metrics.bootstrap import estimate
from locore.metrics.retrieval import map_at_r
from locore.pipeline.build import create_listwise
from locore.pipeline.settings import RESIDUAL_HEAD, Model
from locore.report import pictures
from locore.reranking import ListwiseReranker, Shortlist, weights_file
from locore.reranking.listwise import PROJECTIONS
from locore.reranking.reranker import Reranker, rerankers
from locore.reranking.weights_file import WEIGHTS
from locore.training.init import whiten
from locore.training.loop import Training
from locore.training.synthetic import WIDTH, draw_lists
from locore.utils import distributed, files
from locore.utils.provenance import provenance

LISTS = 8  # of a step, and drawn at a time of those that are tested
TESTED = 256  # lists

Batch = tuple[Shortlist, Tensor]


@dataclass(frozen=True)
class Pretraining:
    """Settings of a pretraining.

    Attributes:
        model: the list-wise re-ranker; one position for all tokens, since the lists of a pretraining are short.
        steps: of 8 lists.
        learning_rate: of AdamW, after 100 steps of warm-up; attention-only backbones need a smaller one.
        settings: further arguments of the backbone.
    """

    model: Model = field(default_factory=lambda: Model(**RESIDUAL_HEAD))
    steps: int = 2400
    learning_rate: float = 1e-3
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_types(self)
        if not self.model.listwise or self.model.positions != "none" or self.model.checkpoint or self.model.start:
            raise ValueError(
                "A pretraining makes a list-wise re-ranker with Model.positions = 'none' from random weights; take a "
                "file of a backbone, such as gin/mamba.gin."
            )
        if self.steps < 1:
            raise ValueError(f"Pretraining.steps = {self.steps} must be at least 1.")
        if not self.learning_rate > 0:
            raise ValueError(f"Pretraining.learning_rate = {self.learning_rate} must be above 0.")

    def create(self) -> ListwiseReranker:
        """Create the re-ranker with random weights."""
        return create_listwise(self.model, (WIDTH, WIDTH), 1, self.settings, force_projection=True)

    def count_parameters(self) -> int:
        """Count the parameters of the re-ranker; whatever cannot be built is reported here."""
        return sum(p.numel() for p in self.create().parameters())


def run_pretraining(pretraining: Pretraining, folder: str | Path, seed: int = 0, config: str = "") -> dict[str, Any]:
    """Pretrain a re-ranker on synthetic lists, resuming an interrupted training in `folder`.

    The projections of descriptors are not trained: each batch gets a whitening of its own descriptors, in directions
    that are drawn anew. So the encoder learns what holds in any directions, and can start behind the whitened
    projections of any descriptors.

    Args:
        pretraining: the settings.
        folder: of the checkpoints, `metrics.json` and the finished `model.safetensors`, in half precision.
        seed: of everything random.
        config: text that says what was run, kept in the metrics; "" = the settings themselves.

    Returns:
        The metrics: mAP@R in percent on lists that were not trained on, with "mean", "low" and "high", of the model
        ("reranked"), of their similarities ("global") and of the re-ranker "chamfer"; and what made them.
    """
    folder = Path(folder)
    torch.manual_seed(seed)
    model = pretraining.create()
    steps = pretraining.steps
    every = max(1, steps // 6)
    training = Training(
        steps, batch_size=LISTS, learning_rate=pretraining.learning_rate, warmup_steps=100, validate_every=every
    )
    tested = [_lists(seed, number) for number in range(-TESTED // LISTS, 0)]
    device = distributed.device()

    def batches(first: int) -> Iterable[Batch]:
        return (_lists(seed, step) for step in range(first, steps))

    def losses(wrapped: nn.Module, batch: Batch) -> Iterator[Tensor]:
        lists, labels = batch
        _whiten(model, lists)
        yield model.loss(wrapped(lists.to(device)), labels.to(device))

    def scored(lists: Shortlist) -> Tensor:
        _whiten(model, lists)
        return _scores(model, lists.to(device))

    def measure(scores: Callable[[Shortlist], Tensor]) -> np.ndarray:
        return np.concatenate([_map_at_r(scores(lists), labels) for lists, labels in tested])

    def validate() -> dict[str, float]:
        torch.manual_seed(seed)
        return {"mAP@R": 100 * float(measure(scored).mean())}

    trained = [parameter for name, parameter in model.named_parameters() if not name.startswith(PROJECTIONS)]
    groups = [{"params": trained, "scale": 1.0}]
    state = training.fit(model.to(device), batches, losses, validate, folder, seed, groups)
    torch.manual_seed(seed)
    chamfer = rerankers.create("chamfer")
    found = {
        "global": measure(lambda lists: lists.similarities),
        "chamfer": measure(lambda lists: _scores(chamfer, lists)),
        "reranked": measure(scored),
    }
    if distributed.first():
        pictures.training(folder / "training.png", state["history"])
        weights_file.write(copy.deepcopy(model).half(), folder / WEIGHTS, model.spec, None)
    metrics = {
        "backbone": pretraining.model.backbone,
        "steps": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "seconds": round(state["seconds"], 1),
        "mAP@R": {name: estimate(100 * values, np.arange(TESTED)) for name, values in found.items()},
        **provenance(seed, config or repr(pretraining)),
    }
    if distributed.first():
        files.write_json(folder / "metrics.json", metrics)
    distributed.wait()
    return metrics


def pretraining_table(metrics: dict[str, Any]) -> str:
    """Return the metrics of a pretraining as a table for the terminal."""
    rows = metrics["mAP@R"].items()
    lines = [f"{n:<10}{v['mean']:>8.1f}  [{v['low']:.1f}, {v['high']:.1f}]" for n, v in rows]
    return "\n".join(["mAP@R of synthetic lists that were not trained on, with 95 % intervals", *lines])


def _whiten(model: ListwiseReranker, lists: Shortlist) -> None:
    """Start the projections as a whitening of the descriptors of lists, in random directions."""
    pairs = zip(model.projections(lists.query), model.projections(lists.candidates), strict=True)
    whiten([(p, torch.cat([own.flatten(0, -2), rows.flatten(0, -2)])) for (p, own), (_, rows) in pairs], share=1.0)


def _lists(seed: int, step: int) -> Batch:
    """Draw the lists of a step; those of steps below 0 test."""
    return draw_lists(LISTS, torch.Generator().manual_seed(seed * 10**7 + 10**6 + step))


def _scores(reranker: Reranker, lists: Shortlist) -> Tensor:
    scores = reranker.rerank(lists).scores
    assert scores is not None  # both that are measured have scores
    return scores.cpu()


def _map_at_r(scores: Tensor, labels: Tensor) -> np.ndarray:
    right = labels.gather(1, scores.argsort(1, descending=True)).numpy()
    return map_at_r(right, labels.sum(1).numpy())
