"""Can an encoder learn a link?  python -m experiments.links --backbones mamba pairwise --results results/links

Trains a small re-ranker with each backbone on lists of random descriptors on which one candidate shares something with
the query, and another with that candidate alone (see locore/evaluation/links.py), and leaves a table, its numbers and
a picture of how the two are learned. A backbone in which candidates never meet cannot be above chance, 50 %, in the
second.
"""

from __future__ import annotations

import argparse
import inspect
import shlex
import sys
from pathlib import Path
from typing import Any

from experiments.command import guarded, seed_number

SIZE = {"width": 64, "depth": 4, "heads": 4}  # of those that have such settings
TESTED = 512  # lists


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(
        "experiments.links", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", metavar="NAME", help="default: all")
    parser.add_argument("--steps", type=int, default=2000, help="of 64 lists (default 2000)")
    parser.add_argument("--seed", type=seed_number, default=0)
    parser.add_argument("--results", type=Path, default=Path("runs/links/results"))
    parser.add_argument("--runs", type=Path, default=Path("runs/links"), help="what a run that is killed goes on from")
    options = parser.parse_args(arguments)
    return guarded(lambda: _links(options))


def _links(options: argparse.Namespace) -> int:
    from backbones.registry import backbones
    from experiments.provenance import provenance
    from locore import files
    from locore.report import links

    if options.steps < 1:
        raise ValueError("--steps is 1 or more.")
    names = options.backbones or backbones.available()
    for name in names:
        backbones.entry(name)  # a wrong name is said before the first one is trained
    found = {name: _one(name, options) for name in names}
    command = shlex.join(["python", "-m", "experiments.links", *sys.argv[1:]])
    made = provenance(options.seed, f"# {command}\n")
    text = links.markdown(found)
    said = f"{options.steps} steps of 64 lists, seed {options.seed}; {TESTED} others tested. Command: `{command}`."
    text += f"\n{said} Machine: {made['machine']}. Commit: {made['commit']}.\n"
    files.write_text(options.results / "links.md", text)
    files.write_json(options.results / "links.json", {"backbones": found, **made})
    links.picture(options.results / "links.png", found)
    print(text)
    return 0


def _one(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Train with one backbone -> what it has learned, and how."""
    import numpy as np
    import torch

    from backbones.registry import backbones
    from locore.evaluation.bootstrap import estimate
    from locore.evaluation.links import CANDIDATES, EASY, LINKED, LOCALS, WIDTH, WRONG, above_wrong, link_lists
    from locore.evaluation.metrics import map_at_r
    from locore.reranking import ListwiseReranker
    from locore.training import Training

    known = inspect.signature(backbones.entry(name).build).parameters
    torch.manual_seed(options.seed)
    model = ListwiseReranker(
        name,
        local_dim=WIDTH,
        global_dim=1,
        max_positions=(1 + CANDIDATES) * (1 + LOCALS),
        settings={setting: value for setting, value in SIZE.items() if setting in known},
        global_token=False,
    )
    every = max(1, options.steps // 16)
    training = Training(options.steps, batch=64, learning_rate=1e-3, warmup=100, validate_every=every)
    lists, kinds = link_lists(TESTED, torch.Generator().manual_seed(options.seed))

    def losses(wrapped, step: int, device: torch.device):
        random = torch.Generator().manual_seed(options.seed * 10**6 + 1 + step)
        drawn, drawn_kinds = link_lists(training.batch, random)
        yield model.loss(wrapped(drawn.to(device)), (drawn_kinds != WRONG).long().to(device))

    def measured() -> dict[int, np.ndarray]:
        scores = model.rerank(lists.to(next(model.parameters()).device)).scores
        assert scores is not None
        scores = scores.cpu()
        return {kind: above_wrong(scores, kinds, kind) for kind in (EASY, LINKED)} | {
            WRONG: map_at_r((kinds != WRONG).gather(1, scores.argsort(1, descending=True)).numpy(), np.full(TESTED, 2))
        }

    def validate() -> dict[str, float]:
        now = {kind: 100 * float(values.mean()) for kind, values in measured().items()}
        return {"mAP@R": now[WRONG], "easy": now[EASY], "linked": now[LINKED]}

    state = training.fit(model, losses, validate, options.runs / f"{name}-seed{options.seed}", options.seed)
    last = measured()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "history": state["history"]["validation"],
        "seconds": round(state["seconds"], 1),
        **{name: estimate(100 * last[kind], np.arange(TESTED)) for name, kind in (("easy", EASY), ("linked", LINKED))},
    }


if __name__ == "__main__":
    sys.exit(main())
