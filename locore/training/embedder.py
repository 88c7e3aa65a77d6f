"""Fine-tune a vision model for global descriptors, with pytorch-metric-learning's losses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.transforms import functional as transforms

from backbones.registry import suggest
from backbones.settings import check_types
from locore.datasets.benchmark import ImageSet
from locore.descriptors.embedder import Embedder
from locore.evaluation.embeddings import evaluate_embeddings
from locore.training.loop import Training
from locore.utils import distributed
from locore.utils.prefetch import ahead

HELD_OUT = 0.1  # share of the classes that validates
PCA_IMAGES = 2000  # that the projection of locals is estimated from
IMAGES = 64  # a forward pass where nothing is trained

# (pytorch-metric-learning's losses, classes, width of the descriptor) -> loss; settings of their papers.
LOSSES = {
    "proxy_anchor": lambda losses, classes, dim: losses.ProxyAnchorLoss(classes, dim, margin=0.1, alpha=32),
    "proxy_nca": lambda losses, classes, dim: losses.ProxyNCALoss(classes, dim, softmax_scale=9),  # ++: temperature 1/9
    "multi_similarity": lambda losses, classes, dim: losses.MultiSimilarityLoss(alpha=2, beta=50, base=0.5),
    "contrastive": lambda losses, classes, dim: losses.ContrastiveLoss(pos_margin=0, neg_margin=0.5),
    "subcenter_arcface": lambda losses, classes, dim: losses.SubCenterArcFaceLoss(
        num_classes=classes, embedding_size=dim
    ),
    "normalised_softmax": lambda losses, classes, dim: losses.NormalizedSoftmaxLoss(classes, dim, temperature=0.05),
}
MINERS = {"multi_similarity": lambda miners: miners.MultiSimilarityMiner(epsilon=0.1)}


@dataclass(frozen=True)
class Finetuning:
    """Settings of the fine-tuning: what is trained, on which batches.

    Attributes:
        loss: "proxy_anchor", "proxy_nca" (ProxyNCA++), "multi_similarity" (with its miner), "contrastive",
            "subcenter_arcface" or "normalised_softmax".
        dim: width of the descriptor; None = as pooled, without a head.
        local_dim: number of principal components that the last map's cells are projected to as local descriptors; None
            = no projection.
        pooling: see `Embedder`.
        layer_norm: see `Embedder`.
        images_per_class: in a batch.
        freeze_batch_norm: keep ImageNet's statistics.
        freeze_backbone: train the head, and an attention pooling, alone. If only the head is trained, features are
            computed once, without augmentation: seconds instead of minutes.
        head_lr_scale: learning rate of the head and of the loss's proxies over that of the network.
        min_crop_area: smallest share of the image in a random crop; 1 = no crops.
        horizontal_flip: mirror half of the images.
    """

    loss: str = "multi_similarity"
    dim: int | None = 512
    local_dim: int | None = None
    pooling: str = "avg+max"
    layer_norm: bool = True
    images_per_class: int = 4
    freeze_batch_norm: bool = True
    freeze_backbone: bool = False
    head_lr_scale: float = 10.0
    min_crop_area: float = 0.5
    horizontal_flip: bool = False

    def __post_init__(self):
        check_types(self)
        if self.loss not in LOSSES:
            raise ValueError(f"Unknown Finetuning.loss '{self.loss}'{suggest(self.loss, LOSSES)}")
        if self.freeze_backbone and self.dim is None:
            raise ValueError("Finetuning.freeze_backbone trains the head alone; give Finetuning.dim.")
        if self.images_per_class < 2:
            raise ValueError("Finetuning.images_per_class must be at least 2: a loss compares images of one class.")
        if not 0 < self.min_crop_area <= 1:
            raise ValueError(f"Finetuning.min_crop_area = {self.min_crop_area} must be in (0, 1].")

    @property
    def pooled_once(self) -> bool:
        """Whether nothing before the head is trained."""
        return self.freeze_backbone and self.pooling != "attention"

    def fit(
        self, start: Embedder, images: ImageSet, training: Training, folder: Path, seed: int
    ) -> tuple[Embedder, dict]:
        """Train on nine tenths of the classes and validate on the others.

        Args:
            start: embedder whose network is the start.
            images: training images.
            training: settings of the loop.
            folder: of checkpoints, from which an interrupted training resumes.
            seed: of everything random.

        Returns:
            The embedder, and the state that `Training.fit` returns.

        Raises:
            ValueError: see `split` and `Training.fit`; or the last map has fewer channels than `local_dim`.
        """
        if training.grad_accumulation_steps > 1:
            raise ValueError(
                "Training.grad_accumulation_steps must be 1 here: these losses compare all images of a batch."
            )
        if self.local_dim and self.local_dim > start.channels:
            raise ValueError(
                f"Finetuning.local_dim = {self.local_dim}, but the last map has {start.channels} channels."
            )
        torch.manual_seed(seed)
        spec = {
            **start.spec,
            "pooling": self.pooling,
            "layer_norm": self.layer_norm,
            "dim": self.dim,
            "local_dim": None,
        }
        embedder = Embedder(**spec)
        embedder.network.load_state_dict(start.network.state_dict())
        embedder.network.set_grad_checkpointing(training.gradient_checkpointing)
        fitted, validating = self.split(images, training.batch_size)
        training, device = training.over(len(fitted)), distributed.device()
        learner = Learner(self, embedder, fitted.labels).to(device)
        own = [p for name, p in embedder.named_parameters() if not name.startswith("network.")]
        groups = [
            {"params": [p for p in embedder.network.parameters() if p.requires_grad], "scale": 1.0},
            {"params": [*own, *learner.loss.parameters()], "scale": self.head_lr_scale},
        ]
        pooled = [pool(embedder, each) if self.pooled_once else None for each in (fitted, validating)]

        def validate() -> dict[str, float]:
            learner.eval()
            with torch.inference_mode():
                found = embed(embedder, validating) if pooled[1] is None else embedder.from_pooled(pooled[1])
            metrics = evaluate_embeddings(found.cpu().numpy(), validating.labels, ks=(1,))
            return {name: 100 * float(values.mean()) for name, values in metrics.items()}

        def load(step: int) -> tuple[Tensor, Tensor]:
            """Read this process's images of a step; the labels are those of all."""
            rows = self.batch(fitted.labels, training.batch_size, step, seed)
            places = distributed.share(np.arange(len(rows)))
            inputs = (
                self._load(embedder, fitted, rows, places, step, seed) if pooled[0] is None else pooled[0][rows[places]]
            )
            return inputs, torch.from_numpy(learner.number[rows])

        def batches(first: int) -> Iterable[tuple[Tensor, Tensor]]:
            return (ahead if pooled[0] is None else map)(load, range(first, training.steps))

        def losses(trained: nn.Module, batch: tuple[Tensor, Tensor]) -> Iterator[Tensor]:
            inputs, labels = batch
            yield trained(inputs.to(device), labels.to(device))

        trained_groups = [group for group in groups if group["params"]]
        state = training.fit(learner, batches, losses, validate, folder, seed, trained_groups)
        if self.local_dim:
            drawn = np.random.default_rng(0).permutation(len(fitted))[:PCA_IMAGES]
            embedder = with_locals(embedder.eval(), fitted.subset(drawn), self.local_dim)
        return embedder.eval(), state

    def split(self, images: ImageSet, size: int) -> tuple[ImageSet, ImageSet]:
        """Split images into nine tenths of the classes and the others, all of which have a second image.

        Args:
            images: all images.
            size: images of a batch.

        Raises:
            ValueError: there are too few classes, or batches of this size cannot be made of them.
        """
        classes, counts = np.unique(images.labels, return_counts=True)
        several = np.random.default_rng(0).permutation(classes[counts > 1])
        held_out = np.isin(images.labels, several[: max(2, int(len(classes) * HELD_OUT))])
        most = len(np.unique(images.labels[~held_out]))
        if len(several) < 3 or size % self.images_per_class or not 2 <= size // self.images_per_class <= most:
            raise ValueError(
                f"A batch of {size} images cannot be {self.images_per_class} of each of two or more of the {most} "
                "classes; set Training.batch_size or Finetuning.images_per_class, or add classes of two images or more."
            )
        return images.subset(np.flatnonzero(~held_out)), images.subset(np.flatnonzero(held_out))

    def batch(self, labels: np.ndarray, size: int, step: int, seed: int) -> np.ndarray:
        """Draw the rows (size,) of a step: `images_per_class` images of some classes, repeated if a class has fewer.

        They follow from (seed, step) alone, so that a resumed training draws what an unbroken one does.
        """
        random = np.random.default_rng((seed, step, 2))
        chosen = random.permutation(np.unique(labels))[: size // self.images_per_class]
        rows = [random.permutation(np.flatnonzero(labels == label)) for label in chosen]
        return np.concatenate([np.resize(each, self.images_per_class) for each in rows])

    def _load(
        self, embedder: Embedder, images: ImageSet, rows: np.ndarray, places: np.ndarray, step: int, seed: int
    ) -> Tensor:
        """Read the images at some places of a batch; what is random follows from the place."""
        return embedder.input(
            [
                self._augmented(images.image(int(rows[place])), np.random.default_rng((seed, step, 3, place)))
                for place in places
            ]
        )

    def _augmented(self, image: Image.Image, random: np.random.Generator) -> Image.Image:
        """Crop a random share of the image, nearly in its proportions, and maybe mirror it."""
        area, shape = random.uniform(self.min_crop_area, 1), np.exp(random.uniform(-0.2, 0.2))
        width, height = (min(side, round(side * s)) for side, s in zip(image.size, _sides(area, shape), strict=True))
        left, top = (int(random.integers(0, a - b + 1)) for a, b in zip(image.size, (width, height), strict=True))
        if self.min_crop_area < 1:
            image = image.crop((left, top, left + width, top + height))
        return transforms.hflip(image) if self.horizontal_flip and random.random() < 0.5 else image


class Learner(nn.Module):
    """An embedder with its loss, which may have parameters of its own.

    Args:
        settings: of the fine-tuning.
        embedder: the embedder.
        labels: of the training images.
    """

    def __init__(self, settings: Finetuning, embedder: Embedder, labels: np.ndarray):
        from pytorch_metric_learning import losses, miners  # a second that commands without training need not wait

        super().__init__()
        self.settings, self.embedder = settings, embedder
        _, self.number = np.unique(labels, return_inverse=True)
        dim = settings.dim or embedder.channels
        self.loss = LOSSES[settings.loss](losses, int(self.number.max()) + 1, dim)
        self.miner = MINERS.get(settings.loss, lambda _: None)(miners)
        embedder.network.requires_grad_(not settings.freeze_backbone)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch.

        Args:
            inputs: images (n, 3, H, W), or features (n, C) that were pooled before: this process's share.
            labels: (N,) of the images of all processes, which the loss compares.
        """
        embed = self.embedder.from_pooled if self.settings.pooled_once else self.embedder
        found = distributed.joined(embed(inputs))
        return self.loss(found, labels, self.miner(found, labels) if self.miner else None)

    def train(self, mode: bool = True) -> Learner:
        super().train(mode)
        if self.settings.freeze_batch_norm or self.settings.freeze_backbone:
            for module in self.embedder.network.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


@torch.no_grad()
def with_locals(embedder: Embedder, images: ImageSet, dim: int) -> Embedder:
    """Return the embedder with a projection of the last map's cells to their first `dim` principal components."""
    maps = _described(embedder, images, lambda batch: embedder.maps(batch)[1])
    cells = torch.cat([rearrange(each, "n c h w -> (n h w) c") for each in maps])
    _, vectors = torch.linalg.eigh(cells.T.double().cov())
    first = vectors.flip(1)[:, :dim].T.float()
    projected = Embedder(**{**embedder.spec, "local_dim": dim}).to(cells.device)
    local = {"local.weight": first[:, :, None, None], "local.bias": -first @ cells.mean(0)}
    projected.load_state_dict({**embedder.state_dict(), **local})
    return projected.eval()


def embed(embedder: Embedder, images: ImageSet) -> Tensor:
    """Describe all images, (N, Dg)."""
    return torch.cat(_described(embedder, images, embedder))


def pool(embedder: Embedder, images: ImageSet) -> Tensor:
    """Pool the features of all images, (N, C)."""
    return torch.cat(_described(embedder, images, lambda batch: embedder.pool(embedder.maps(batch)[0])))


@torch.no_grad()
def _described(embedder: Embedder, images: ImageSet, describe: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Apply a function to all images in batches, which processes share."""
    device = next(embedder.parameters()).device
    parts = [range(i, min(i + IMAGES, len(images))) for i in range(0, len(images), IMAGES)]
    loaded = ahead(lambda part: embedder.input([images.image(i) for i in part]), distributed.share(parts))
    found = distributed.spread(lambda _: describe(next(loaded).to(device)).cpu(), parts, "describing")
    return [each.to(device) for each in found]


def _sides(area: float, shape: float) -> tuple[float, float]:
    return (area * shape) ** 0.5, (area / shape) ** 0.5
