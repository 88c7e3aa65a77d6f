"""Whether a sequence encoder can learn a link: train a small re-ranker on synthetic lists."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from backbones.registry import backbones
from locore.metrics.bootstrap import estimate
from locore.metrics.retrieval import map_at_r
from locore.probes.synthetic_lists import (
    CANDIDATES,
    EASY,
    LINKED,
    LOCALS,
    WIDTH,
    WRONG,
    above_wrong,
    synthetic_lists,
)
from locore.reranking import ListwiseReranker, Shortlist
from locore.training.loop import Training
from locore.utils import distributed

SIZE = {"width": 64, "depth": 4, "heads": 4}  # of the encoders that have such settings
TESTED = 512  # lists
LISTS = 64  # a step

Batch = tuple[Shortlist, Tensor]


def train_on_synthetic_lists(backbone: str, steps: int, seed: int, folder: Path) -> dict[str, Any]:
    """Train a re-ranker with one backbone on synthetic lists, resuming an interrupted training in `folder`.

    Args:
        backbone: registered name.
        steps: of 64 lists.
        seed: of everything random.
        folder: of the checkpoints.

    Returns:
        "parameters", "history" of the validations, "seconds", and "easy" and "linked": the share in percent of wrong
        candidates below each, with "mean", "low" and "high".
    """
    known = inspect.signature(backbones.entry(backbone).build).parameters
    torch.manual_seed(seed)
    model = ListwiseReranker(
        backbone,
        local_dim=WIDTH,
        global_dim=1,
        max_positions=(1 + CANDIDATES) * (1 + LOCALS),
        settings={setting: value for setting, value in SIZE.items() if setting in known},
        global_token=False,
    )
    every = max(1, steps // 16)
    training = Training(steps, batch_size=LISTS, learning_rate=1e-3, warmup_steps=100, validate_every=every)
    lists, kinds = synthetic_lists(TESTED, torch.Generator().manual_seed(seed))
    device = distributed.device()

    def batches(first: int) -> Iterable[Batch]:
        generators = (torch.Generator().manual_seed(seed * 10**6 + 1 + step) for step in range(first, steps))
        return (synthetic_lists(LISTS, generator) for generator in generators)

    def losses(wrapped: nn.Module, batch: Batch) -> Iterator[Tensor]:
        drawn, drawn_kinds = batch
        yield model.loss(wrapped(drawn.to(device)), (drawn_kinds != WRONG).long().to(device))

    def measure() -> dict[int, np.ndarray]:
        scores = model.rerank(lists.to(next(model.parameters()).device)).scores
        assert scores is not None
        scores = scores.cpu()
        right = (kinds != WRONG).gather(1, scores.argsort(1, descending=True)).numpy()
        return {kind: above_wrong(scores, kinds, kind) for kind in (EASY, LINKED)} | {
            WRONG: map_at_r(right, np.full(TESTED, 2))
        }

    def validate() -> dict[str, float]:
        now = {kind: 100 * float(values.mean()) for kind, values in measure().items()}
        return {"mAP@R": now[WRONG], "easy": now[EASY], "linked": now[LINKED]}

    state = training.fit(model, batches, losses, validate, folder, seed)
    last = measure()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": state["history"]["validation"],
        "seconds": round(state["seconds"], 1),
        **{name: estimate(100 * last[kind], np.arange(TESTED)) for name, kind in (("easy", EASY), ("linked", LINKED))},
    }
