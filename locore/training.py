"""The training loop, of re-rankers and of global descriptors: read it from top to bottom.

Everything random in a step (its lists or images, dropout) is drawn from (seed, step), so a resumed run needs no
state of any generator and ends with the same weights as an unbroken one.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.tensorboard import SummaryWriter

from backbones.registry import suggest
from backbones.settings import check_types
from locore import processes, resume, weights
from locore.progress import track

log = logging.getLogger(__name__)

Losses = Callable[[nn.Module, int, torch.device], Iterable[Tensor]]  # model, step, device -> losses to be summed
Validate = Callable[[], dict[str, float]]

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class Training:
    """How a model is trained.

    Attributes:
        steps: optimizer steps. batch: lists a step (of global descriptors: images). learning_rate: the highest.
        warmup: steps of linear rise.
        schedule: after warm-up, "constant", "linear" or "cosine". weight_decay: AdamW's. clip: largest gradient norm.
        accumulation: parts that a step's batch is cut into. gradient_checkpointing: recompute instead of keeping.
        average: decay of the exponential moving average of the weights that is validated and kept; 0 = the weights are.
        precision: "no" (float32) or "bf16". validate_every: steps between validations, each followed by a checkpoint.
    """

    steps: int = 300
    batch: int = 24
    learning_rate: float = 1e-3
    warmup: int = 50
    schedule: str = "cosine"
    weight_decay: float = 0.0
    clip: float = 1.0
    average: float = 0.0
    accumulation: int = 1
    gradient_checkpointing: bool = False
    precision: str = "no"
    validate_every: int = 50

    def __post_init__(self):
        check_types(self)
        if self.schedule not in SCHEDULES:
            raise ValueError(f"Unknown Training.schedule '{self.schedule}'{suggest(self.schedule, SCHEDULES)}")
        if self.precision not in ("no", "bf16"):
            raise ValueError(f"Unknown Training.precision '{self.precision}'{suggest(self.precision, ['no', 'bf16'])}")
        if min(self.steps, self.batch, self.validate_every, self.accumulation) < 1:
            raise ValueError("Training.steps, batch, validate_every and accumulation must be at least 1.")
        if not 0 <= self.learning_rate < math.inf or min(self.warmup, self.weight_decay) < 0 or self.clip <= 0:
            raise ValueError("Training.learning_rate, warmup and weight_decay are not below 0, and clip is above it.")
        if not 0 <= self.average < 1:
            raise ValueError(f"Training.average = {self.average} must be in [0, 1).")
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
        model: nn.Module,
        losses: Losses,
        validate: Validate,
        folder: Path,
        seed: int,
        groups: list[dict] | None = None,
    ) -> dict:
        """Train, or go on from the folder's `last.safetensors`; the model ends with its best weights.

        Writes `last.safetensors` and `best.safetensors` after each validation, and TensorBoard's scalars.

        Args:
            losses: gives the losses of a step, one for each part of its batch; their sum is the step's.
            validate: gives metrics; the model with the highest "mAP@R" is the best.
            groups: AdamW's parameter groups, each with a "scale" of the learning rate; None = all parameters alike.

        Returns:
            "history" ("loss" of each step, "validation" metrics with their step) and "seconds" of training in all.

        Raises:
            ValueError: the loss is not finite, or the checkpoint is damaged or another model's.
        """
        if self.batch % (self.accumulation * processes.count()):
            raise ValueError(
                f"Training.batch {self.batch} cannot be cut into {self.accumulation} equal parts of each of "
                f"{processes.count()} processes."
            )
        # Not every batch reaches every weight: the one that stands for a missing descriptor, for instance.
        spread = DistributedDataParallelKwargs(find_unused_parameters=True)
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(), mixed_precision=self.precision, kwargs_handlers=[spread]
        )
        groups = groups or [{"params": list(model.parameters()), "scale": 1.0}]
        wrapped, optimizer = accelerator.prepare(
            model, torch.optim.AdamW(groups, lr=self.learning_rate, weight_decay=self.weight_decay)
        )
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.average)) if self.average else None
        state = resume.restore(folder / "last.safetensors", model, optimizer, average) or {
            "step": 0,
            "best": -1.0,
            "seconds": 0.0,
            "history": {"loss": [], "validation": []},
        }
        if len(set(processes.gathered(state["step"]))) > 1:
            raise ValueError(f"Not all processes see the checkpoint in '{folder}'; the run folder has to be shared.")
        history = state["history"]
        if state["step"]:
            log.info("Training goes on behind step %d of %d.", state["step"], self.steps)
        begun = time.perf_counter()
        writer = SummaryWriter(str(folder / "tensorboard"), purge_step=state["step"]) if processes.first() else None
        try:
            for step in track(range(state["step"], self.steps), "training", self.steps, state["step"]):
                loss, norm = self._step(step, wrapped, optimizer, losses, accelerator, seed)
                if average:
                    average.update_parameters(model)
                history["loss"].append(loss)
                scalars = {"loss": loss, "gradient_norm": norm, "learning_rate": self.rate(step)}
                if (step + 1) % self.validate_every == 0 or step + 1 == self.steps:
                    with _averaged(model, average):
                        metrics = validate()
                        if metrics["mAP@R"] > state["best"]:
                            state["best"] = metrics["mAP@R"]
                            if processes.first():
                                weights.save(model, folder / "best.safetensors")
                    history["validation"].append({"step": step + 1, **metrics})
                    scalars |= {f"validation/{name}": value for name, value in metrics.items()}
                    state["step"] = step + 1
                    state["seconds"] += time.perf_counter() - begun
                    begun = time.perf_counter()
                    if processes.first():
                        resume.save(folder / "last.safetensors", model, optimizer, state, average)
                    log.info(
                        "step %d: loss %.4f, validation %s", step + 1, np.mean(history["loss"][-50:]), _line(metrics)
                    )
                if writer:
                    for name, value in scalars.items():
                        writer.add_scalar(name, value, step)
        finally:
            if writer:
                writer.close()
        processes.wait()  # till the best weights are written
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # what is measured is what its file gives
        resume.load_weights(folder / "best.safetensors", model)
        return state

    def _step(self, step, model, optimizer, losses: Losses, accelerator: Accelerator, seed: int) -> tuple[float, float]:
        """One optimizer step -> its loss and gradient norm."""
        for group in optimizer.param_groups:
            group["lr"] = group["scale"] * self.rate(step)
        torch.manual_seed((seed * 1_000_003 + step) * processes.count() + processes.rank())
        model.train()
        total = 0.0
        parts = iter(losses(model, step, accelerator.device))
        for number in range(self.accumulation):  # gradients are averaged over processes once, with the last part
            with nullcontext() if number == self.accumulation - 1 else accelerator.no_sync(model):
                loss = next(parts)
                accelerator.backward(loss)
            total += loss.item()
        total = float(accelerator.reduce(torch.tensor(total, device=accelerator.device), "mean"))
        norm = float(accelerator.clip_grad_norm_(model.parameters(), self.clip))
        if not math.isfinite(total) or not math.isfinite(norm):
            raise ValueError(
                f"The loss is {total} (gradient norm {norm}) at step {step + 1}; lower Training.learning_rate, raise "
                "Training.warmup, or look for descriptors that are not finite."
            )
        optimizer.step()
        optimizer.zero_grad()
        return total, norm


@contextmanager
def _averaged(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """The model with its average's weights, for a while."""
    if average is None:
        yield
        return
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.module.state_dict())
    yield
    model.load_state_dict(own)


def _line(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in metrics.items())
