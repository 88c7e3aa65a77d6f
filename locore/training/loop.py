"""The training loop of re-rankers and of global descriptors.

Everything random in a step (its lists or images, dropout) is drawn from (seed, step). A resumed run therefore needs no
state of any generator and ends with the same weights as an unbroken one.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, ProjectConfiguration
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from backbones.registry import suggest
from backbones.settings import check_types
from locore.training import state as saved
from locore.training import trackers
from locore.utils import distributed, safetensors
from locore.utils.progress import track

log = logging.getLogger(__name__)

Batches = Callable[[int], Iterable[Any]]  # first step -> the batch of that step and of each step after it
Losses = Callable[[nn.Module, Any], Iterable[Tensor]]  # model, batch -> losses to be summed
Validate = Callable[[], dict[str, float]]

SCHEDULES = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
CHECKPOINT_SECONDS = 600
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Training:
    """Settings of a training.

    Attributes:
        steps: optimizer steps.
        epochs: passes over all queries or images, which take the place of `steps`; None = `steps` says how long it is.
        batch_size: lists a step; for global descriptors, images a step.
        learning_rate: the highest one.
        warmup_steps: steps of linear rise.
        schedule: after the warm-up, "constant", "linear" or "cosine".
        weight_decay: of AdamW.
        max_grad_norm: gradients are clipped to this norm.
        ema_decay: decay of the exponential moving average of the weights, which is then validated and kept; 0 = none.
        grad_accumulation_steps: equal parts that a step's batch is cut into.
        gradient_checkpointing: recompute activations in the backward pass instead of keeping them.
        mixed_precision: "no" (float32) or "bf16".
        validate_every: steps between validations, each followed by a checkpoint, as are ten minutes without one.
        monitor: the validation metric that decides which weights are kept, the highest value wins; None = the deciding
            metric of the benchmark.
        patience: end the training early, when so many validations in a row have not gained `min_gain`; 0 = never.
        min_gain: of the monitored metric over the best value so far, in points, which counts as a gain.
        trackers: names of trackers that accelerate knows, such as "wandb" and "mlflow", which get the scalars that
            TensorBoard gets; their packages are installed by the user.
    """

    steps: int = 300
    epochs: float | None = None
    batch_size: int = 24
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    schedule: str = "cosine"
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    ema_decay: float = 0.0
    grad_accumulation_steps: int = 1
    gradient_checkpointing: bool = False
    mixed_precision: str = "no"
    validate_every: int = 50
    monitor: str | None = None
    patience: int = 0
    min_gain: float = 0.2
    trackers: Sequence[str] = ()

    def __post_init__(self):
        check_types(self)
        for name, known in (("schedule", SCHEDULES), ("mixed_precision", PRECISIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Unknown Training.{name} '{value}'{suggest(value, known)}")
        for name in ("steps", "batch_size", "validate_every", "grad_accumulation_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"Training.{name} = {getattr(self, name)} must be at least 1.")
        if self.epochs is not None and not 0 < self.epochs < math.inf:
            raise ValueError(f"Training.epochs = {self.epochs} must be above 0, or None.")
        for name in ("learning_rate", "warmup_steps", "weight_decay", "patience", "min_gain"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Training.{name} = {getattr(self, name)} must be finite and not negative.")
        trackers.check(self.trackers)
        if not self.max_grad_norm > 0:
            raise ValueError(f"Training.max_grad_norm = {self.max_grad_norm} must be above 0.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"Training.ema_decay = {self.ema_decay} must be in [0, 1).")
        if self.batch_size % self.grad_accumulation_steps:
            raise ValueError(
                f"Training.batch_size {self.batch_size} cannot be cut into {self.grad_accumulation_steps} equal parts."
            )

    def check_monitor(self, measured: Iterable[str]) -> None:
        """Raise a ValueError if `monitor` is not among the metrics that validation measures."""
        if self.monitor and self.monitor not in (known := list(measured)):
            raise ValueError(f"Unknown Training.monitor '{self.monitor}'{suggest(self.monitor, known)}")

    def rate(self, step: int) -> float:
        """Learning rate of a step."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
        return self.learning_rate * SCHEDULES[self.schedule](progress)

    def over(self, queries: int) -> Training:
        """Return the training on so many queries or images: its steps are those that `epochs` take."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, round(self.epochs * queries / self.batch_size)), epochs=None)

    def stalled(self, values: Iterable[float]) -> bool:
        """Return whether the last `patience` values of the monitored metric have gained nothing that counts."""
        if not self.patience:
            return False
        best, since = -math.inf, 0
        for value in values:
            best, since = (value, 0) if value >= best + self.min_gain else (best, since + 1)
        return since >= self.patience

    def fit(
        self,
        model: nn.Module,
        batches: Batches,
        losses: Losses,
        validate: Validate | None,
        folder: Path,
        seed: int,
        groups: list[dict] | None = None,
        main: str = "mAP@R",
    ) -> dict:
        """Train, resuming from `last.safetensors` in the folder; the model ends with its best weights.

        Writes `last.safetensors` after each validation and every ten minutes, `best.safetensors` after the best
        validation so far (without validation, at the end), and scalars for TensorBoard.

        Args:
            model: what is trained.
            batches: given the first step, yields one batch a step from there on.
            losses: given the model and a batch, yields the loss of each of its `grad_accumulation_steps` parts; their
                sum is the loss of the step.
            validate: returns the validation metrics by name; None = there is none, and the last weights are kept.
            folder: of the checkpoints.
            seed: of everything that is random.
            groups: parameter groups of AdamW, each with a "scale" of the learning rate; None = all parameters alike.
            main: the validation metric that decides where `monitor` names none.

        Returns:
            "history" (the "loss" of each step, the "validation" metrics with their step and the seconds until then),
            "best", the highest value of `monitor` (None without validation), and "seconds" of training.

        Raises:
            ValueError: the loss is not finite, the checkpoint is damaged or belongs to another model, or accelerate was
                started with FSDP or DeepSpeed.
        """
        parts, monitor = self.grad_accumulation_steps, self.monitor or main
        if self.batch_size % (parts * distributed.count()):
            raise ValueError(
                f"Training.batch_size {self.batch_size} cannot be cut into {parts} equal parts for each of "
                f"{distributed.count()} processes."
            )
        for name in ("FSDP", "DEEPSPEED"):
            if os.environ.get(f"ACCELERATE_USE_{name}", "false").lower() == "true":
                raise ValueError(f"Every process keeps whole weights here; start accelerate without {name}.")
        unused = distributed.count() > 1 and _leaves_weights_out(model, losses, batches)
        accelerator = Accelerator(
            cpu=not torch.cuda.is_available(),
            mixed_precision=self.mixed_precision,
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=unused)],
            project_config=ProjectConfiguration(logging_dir=str(folder)),
        )
        groups = groups or [{"params": list(model.parameters()), "scale": 1.0}]
        wrapped, optimizer = accelerator.prepare(
            model,
            torch.optim.AdamW(
                groups, lr=self.learning_rate, weight_decay=self.weight_decay, fused=torch.cuda.is_available() or None
            ),
        )
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.ema_decay)) if self.ema_decay else None
        state = saved.restore(folder / "last.safetensors", model, optimizer, average) or saved.fresh()
        first, history = state["step"], state["history"]
        if len(set(distributed.gathered(first))) > 1:
            raise ValueError(
                f"Not all processes see the checkpoint in '{folder}'; put the run folder on a shared disk."
            )
        if first:
            log.info("Resuming the training after step %d of %d.", first, self.steps)
        started = written = time.perf_counter()
        accelerator.log_with = trackers.described(self.trackers, folder, first)
        accelerator.init_trackers(trackers.PROJECT, trackers.settings(asdict(self)), {"wandb": {"name": folder.name}})
        stream = iter(batches(first))
        try:
            for step in track(range(first, self.steps), "training", self.steps, first):
                if self.stalled(point[monitor] for point in history["validation"]):
                    log.info("Ended after step %d: no gain in %d validations.", step, self.patience)
                    break
                # One step: everything random follows from (seed, step), and its batch is drawn after seeding.
                torch.manual_seed((seed * 1_000_003 + step) * distributed.count() + distributed.rank())
                for group in optimizer.param_groups:
                    group["lr"] = group["scale"] * self.rate(step)
                wrapped.train()
                each, loss = iter(losses(wrapped, next(stream))), 0.0
                for number in range(parts):  # gradients are averaged over processes once, with the last part
                    with nullcontext() if number == parts - 1 else accelerator.no_sync(wrapped):
                        part = next(each)
                        accelerator.backward(part)
                    loss += part.item()
                loss = float(accelerator.reduce(torch.tensor(loss, device=accelerator.device), "mean"))
                norm = float(accelerator.clip_grad_norm_(wrapped.parameters(), self.max_grad_norm))
                if not math.isfinite(loss) or not math.isfinite(norm):
                    raise ValueError(
                        f"The loss is {loss} (gradient norm {norm}) at step {step + 1}; lower Training.learning_rate, "
                        "raise Training.warmup_steps, or look for descriptors that are not finite."
                    )
                optimizer.step()
                optimizer.zero_grad()
                if average:
                    average.update_parameters(model)
                history["loss"].append(loss)
                scalars = {"loss": loss, "gradient_norm": norm, "learning_rate": self.rate(step)}
                last = step + 1 == self.steps
                validated = validate is not None and (last or (step + 1) % self.validate_every == 0)
                if validated or last:
                    with _averaged(model, average):
                        metrics = validate() if validate else {}
                        if not validate or metrics[monitor] > state["best"]:
                            state["best"] = metrics.get(monitor)
                            if distributed.first():
                                safetensors.save(model, folder / "best.safetensors")
                if validated:
                    state["seconds"] += time.perf_counter() - started
                    started = time.perf_counter()
                    history["validation"].append({"step": step + 1, "seconds": round(state["seconds"], 1), **metrics})
                    scalars |= {f"validation/{name}": value for name, value in metrics.items()}
                if validated or last or time.perf_counter() - written > CHECKPOINT_SECONDS:
                    state["step"] = step + 1
                    state["seconds"] += time.perf_counter() - started
                    started = written = time.perf_counter()
                    if distributed.first():
                        saved.save(folder / "last.safetensors", model, optimizer, state, average)
                if validated:
                    recent = np.mean(history["loss"][-50:])
                    log.info("step %d: loss %.4f, validation %s", step + 1, recent, _line(metrics))
                accelerator.log(scalars, step)
        finally:
            for tracker in accelerator.trackers:  # end_training would also end the group of processes
                tracker.finish()
        distributed.wait()  # until the best weights are written
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)  # evaluate what the file of weights gives
        saved.load_weights(folder / "best.safetensors", model)
        return state


@contextmanager
def _averaged(model: nn.Module, average: AveragedModel | None) -> Iterator[None]:
    """Give the model the weights of its average within the block."""
    if average is None:
        yield
        return
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(average.module.state_dict())
    yield
    model.load_state_dict(own)


def _leaves_weights_out(model: nn.Module, losses: Losses, batches: Batches) -> bool:
    """Return whether the loss of a batch leaves out a weight, which processes then have to look for in every step."""
    model.train()
    next(iter(losses(model, next(iter(batches(0)))))).backward()
    left_out = any(p.requires_grad and p.grad is None for p in model.parameters())
    model.zero_grad()
    return any(distributed.gathered(left_out))


def _line(metrics: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.1f}" for name, value in metrics.items())
