"""Training of a list-wise re-ranker: read it from top to bottom.

Everything random in a step (its lists, their order, dropout) is drawn from (seed, step), so a resumed run needs no
state of any generator and ends with the same weights as an unbroken one.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from backbones.registry import suggest
from locore import checkpoints
from locore.descriptors.store import Descriptors
from locore.files import atomic
from locore.progress import track
from locore.reranking.listwise import ListwiseReranker
from locore.reranking.reranker import Shortlist

log = logging.getLogger(__name__)

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class Lists:
    """Training lists: each image asks, its nearest neighbours are the candidates.

    Attributes:
        descriptors: of N images. candidates: (N, K) neighbours of each. labels: (N,) classes.
    """

    descriptors: Descriptors
    candidates: np.ndarray
    labels: np.ndarray

    def batch(self, step: int, size: int, seed: int, device: torch.device) -> tuple[Shortlist, Tensor]:
        """The lists of a step: every image once an epoch, each list's candidates in an order of its own."""
        places = np.arange(step * size, (step + 1) * size)
        count = len(self.labels)
        rows = np.array([_permutation(seed, int(place // count), count)[place % count] for place in places])
        shuffled = np.random.default_rng((seed, step, 1)).permuted(self.candidates[rows], axis=1)
        labels = (self.labels[shuffled] == self.labels[rows][:, None]).astype(np.int64)
        shortlist = Shortlist.gather(
            self.descriptors, torch.from_numpy(rows), self.descriptors, torch.from_numpy(shuffled), device
        )
        return shortlist, torch.from_numpy(labels).to(device)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, count: int) -> np.ndarray:
    """The order in which the images of an epoch ask."""
    return np.random.default_rng((seed, epoch)).permutation(count)


@dataclass(frozen=True)
class Training:
    """How a re-ranker is trained.

    Attributes:
        steps: optimizer steps. batch: lists a step. learning_rate: the highest. warmup: steps of linear rise.
        schedule: after warm-up, "constant", "linear" or "cosine". weight_decay: AdamW's. clip: largest gradient norm.
        accumulation: parts that a step's batch is cut into. gradient_checkpointing: recompute instead of keeping.
        precision: "no" (float32) or "bf16". validate_every: steps between validations, each followed by a checkpoint.
    """

    steps: int = 300
    batch: int = 24
    learning_rate: float = 1e-3
    warmup: int = 50
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "no"
    validate_every: int = 50

    def __post_init__(self):
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown Training.schedule '{self.schedule}'{suggest(self.schedule, SCHEDULES)}")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"Unknown Training.precision '{self.precision}'{suggest(self.precision, ['no', 'bf16'])}")
        if min(self.steps, self.batch, self.validate_every, self.accumulation) < 1:
            raise ValueError("Training.steps, batch, validate_every and accumulation must be at least 1.")
        if self.batch % self.accumulation:
            raise ValueError(f"Training.batch {self.batch} cannot be cut into {self.accumulation} equal parts.")

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(self.steps - self.warmup, 1)
        return self.learning_rate * SCHEDULES[self.schedule](progress)

    def fit(
        self,
        model: ListwiseReranker,
        lists: Lists,
        validate: Callable[[ListwiseReranker], dict[str, float]],
        folder: Path,
        seed: int,
    ) -> dict:
        """Train, or go on from the folder's `last.safetensors`; the model ends with its best weights.

        Writes `last.safetensors` and `best.safetensors` after each validation, and TensorBoard's scalars.

        Args:
            validate: gives metrics; the model with the highest "mAP@R" is the best.

        Returns:
            "history" ("loss" of each step, "validation" metrics with their step) and "seconds" of training in all.

        Raises:
            ValueError: the loss is not finite, or the checkpoint is damaged or another model's.
        """
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=self.precision)
        model.encoder.gradient_checkpointing = self.gradient_checkpointing
        wrapped, optimizer = accelerator.prepare(
            model, torch.optim.AdamW(model.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay)
        )
        state = _restore(folder / "last.safetensors", model, optimizer)
        history = state["history"]
        if state["step"]:
            log.info("Training goes on behind step %d of %d.", state["step"], self.steps)
        begun = time.perf_counter()
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=state["step"])
        try:
            for step in track(range(state["step"], self.steps), "training", self.steps, state["step"]):
                loss, norm = self._step(step, wrapped, optimizer, lists, accelerator, seed)
                history["loss"].append(loss)
                for name, value in (("loss", loss), ("gradient_norm", norm), ("learning_rate", self.rate(step))):
                    writer.add_scalar(name, value, step)
                if (step + 1) % self.validate_every == 0 or step + 1 == self.steps:
                    metrics = validate(model)
                    history["validation"].append({"step": step + 1, **metrics})
                    for name, value in metrics.items():
                        writer.add_scalar(f"validation/{name}", value, step)
                    if metrics["mAP@R"] > state["best"]:
                        state["best"] = metrics["mAP@R"]
                        checkpoints.save(model, folder / "best.safetensors")
                    state["step"] = step + 1
                    state["seconds"] += time.perf_counter() - begun
                    begun = time.perf_counter()
                    _save(folder / "last.safetensors", model, optimizer, state)
                    log.info(
                        "step %d: loss %.4f, validation %s", step + 1, np.mean(history["loss"][-50:]), _line(metrics)
                    )
        finally:
            writer.close()
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # what is measured is what `locore.load` gives
        model.load_state_dict(checkpoints.load(folder / "best.safetensors").state_dict())
        return state

    def _step(self, step, model, optimizer, lists: Lists, accelerator: Accelerator, seed: int) -> tuple[float, float]:
        """One optimizer step -> its loss and gradient norm."""
        for group in optimizer.param_groups:
            group["lr"] = self.rate(step)
        torch.manual_seed(seed * 1_000_003 + step)
        model.train()
        shortlist, labels = lists.batch(step, self.batch, seed, accelerator.device)
        total = 0.0
        for part, part_labels in _parts(shortlist, labels, self.accumulation):
            loss = ListwiseReranker.loss(model(part), part_labels) / self.accumulation
            accelerator.backward(loss)
            total += loss.item()
        norm = float(accelerator.clip_grad_norm_(model.parameters(), self.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ValueError(
                f"The loss is {total} (gradient norm {norm}) at step {step + 1}; lower Training.learning_rate, raise "
                "Training.warmup, or look for descriptors that are not finite."
            )
        optimizer.step()
        optimizer.zero_grad()
        return total, norm


def _parts(shortlist: Shortlist, labels: Tensor, count: int) -> Iterator[tuple[Shortlist, Tensor]]:
    """The batch cut into equal parts."""
    for rows in torch.arange(len(labels), device=labels.device).chunk(count):
        part = Shortlist(shortlist.similarities[rows], shortlist.query[rows], shortlist.candidates[rows])
        yield part, labels[rows]


def _save(path: Path, model: ListwiseReranker, optimizer, state: dict) -> None:
    """Weights, AdamW's moments and the run's state in one safetensors file, atomically."""
    tensors = {f"model.{name}": value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": value.cpu().contiguous() for name, value in moments.items()}
    with atomic(path) as temporary:
        save_file(tensors, temporary, metadata={"state": json.dumps(state)})


def _restore(path: Path, model: ListwiseReranker, optimizer) -> dict:
    """Load what `_save` wrote; a fresh state where there is nothing."""
    if not path.exists():
        return {"step": 0, "best": -1.0, "seconds": 0.0, "history": {"loss": [], "validation": []}}
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
            state = json.loads(file.metadata()["state"])
        model.load_state_dict({name[6:]: value for name, value in tensors.items() if name.startswith("model.")})
    except (SafetensorError, OSError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"The checkpoint '{path}' is damaged or another model's; delete it to start again.") from error
    moments: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, moment = name.split(".")
            moments.setdefault(int(index), {})[moment] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return state


def _line(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in metrics.items())
