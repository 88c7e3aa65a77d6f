"""Images to descriptors with any timm model, kept on disk so that no run extracts twice."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.registry import suggest
from locore.datasets.benchmark import ImageSet, Subset
from locore.datasets.images import on_white
from locore.descriptors import store
from locore.descriptors.embedder import BUNDLED, POOLINGS, Embedder, weights_file
from locore.descriptors.fold import fold_batch_norms
from locore.descriptors.store import Descriptors
from locore.files import cache_folder
from locore.prefetch import ahead
from locore.progress import track

log = logging.getLogger(__name__)

PART = 2048  # images a file while extracting: what a kill can lose
TRAINED = ".safetensors"  # how the file of a trained embedder ends
NUMERICS = 2  # counts the changes of this file that change a last digit of a descriptor


@dataclass(frozen=True)
class Extractor:
    """Global and local descriptors from one forward pass of a frozen model.

    Attributes:
        model: a timm model's name.
        weights: "bundled" (ImageNet's, of tf_efficientnet_lite0, installed by pip), "pretrained" (timm's download),
            "random" (seed 0), a file with a state dict, or the `.safetensors` that `experiments.embed` leaves.
        image_size: side in pixels that images are resized to.
        pooling: of the last feature map into the global descriptor, see `Embedder`; a trained embedder has its own.
        local_stage: which feature map locals are read from, an index into timm's intermediates; None = the last map.
        locals_: "grid": the map's cells, averaged to `grid` × `grid`. "top": the `top` cells with the largest norm.
        batch: images a forward pass.
    """

    model: str = BUNDLED
    weights: str = "bundled"
    image_size: int = 96
    pooling: str = "avg"
    local_stage: int | None = None
    locals_: str = "grid"
    grid: int = 3
    top: int = 16
    batch: int = 64

    def __post_init__(self):
        for option, value, known in (("pooling", self.pooling, POOLINGS), ("locals_", self.locals_, ("grid", "top"))):
            if value not in known:
                raise ValueError(f"Extractor.{option} = '{value}' is unknown{suggest(value, known)}")
        weights_file(self.model, self.weights)

    @property
    def locals_per_image(self) -> int:
        """L."""
        return self.grid**2 if self.locals_ == "grid" else self.top

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Width of a global and of a local descriptor."""
        with torch.inference_mode():
            images = torch.zeros(1, 3, self.image_size, self.image_size, device=self._device)
            last, local = self._embedder.maps(images, self.local_stage)
            width = self._embedder.describe(last).shape[1]
        cells = local.shape[2] * local.shape[3]
        if self.locals_ == "top" and self.top > cells:
            raise ValueError(f"Extractor.top = {self.top}, but the feature map has {cells} cells; raise image_size.")
        return width, local.shape[1]

    def extract(self, images: ImageSet) -> Descriptors:
        """Descriptors of all images, from the cache where they are there.

        Raises:
            ValueError: an image cannot be read.
        """
        if isinstance(images, Subset):
            return self.extract(images.base)[torch.from_numpy(images.indices)]
        path = cache_folder() / "descriptors" / f"{self._key(images)}.h5"
        try:
            arrays = store.read_arrays(path, len(images))
            log.info("Descriptors of %d images: cached in %s.", len(images), path)
            return store.unpack(*map(torch.from_numpy, arrays))
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("%s They are extracted again.", error)
        parts = list(self._parts(images, path.with_suffix(".parts")))
        globals_, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        store.write(path, globals_, features)
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
        return store.unpack(torch.from_numpy(globals_), torch.from_numpy(features))

    def _parts(self, images: ImageSet, folder: Path) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Arrays of PART images at a time; each part is a file, so that a killed run goes on behind the last."""
        starts = range(0, len(images), PART)
        done: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for start in starts:
            try:
                done[start] = store.read_arrays(folder / f"{start:09}.h5", min(PART, len(images) - start))
            except (FileNotFoundError, ValueError):
                break
        if done:
            log.info("Extraction goes on behind %d of %d images.", min(len(done) * PART, len(images)), len(images))
        batches = [
            range(i, min(i + self.batch, start + PART, len(images)))
            for start in starts
            if start not in done
            for i in range(start, min(start + PART, len(images)), self.batch)
        ]
        _ = self._embedder  # built here, not by two threads at once
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        loaded = ahead(lambda batch: self._embedder.input([images.image(i) for i in batch]), batches)
        first = len(done) * PART
        with torch.inference_mode():
            for batch in track(batches, "extracting", -(-len(images) // self.batch), first // self.batch):
                rows.append(self._describe(next(loaded)))
                if batch.stop % PART == 0 or batch.stop == len(images):
                    globals_, features = (np.concatenate(arrays) for arrays in zip(*rows, strict=True))
                    done[first] = globals_, features
                    store.write(folder / f"{first:09}.h5", globals_, features)
                    first, rows = batch.stop, []
        yield from done.values()

    def describe(self, images: Sequence[Image.Image]) -> Descriptors:
        """Descriptors of images in memory, not cached."""
        with torch.inference_mode():
            batch = self._embedder.input([on_white(image) for image in images])
            return store.unpack(*map(torch.from_numpy, self._describe(batch)))

    def tables(self, embedder: Embedder, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Images (N, 3, H, W) -> globals (N, Dg), features (N, L, 5 + D) as `store.write` has them, differentiable."""
        last, local = embedder.maps(batch, self.local_stage)
        globals_ = embedder.describe(last)
        if self.locals_ == "grid":
            local = F.adaptive_avg_pool2d(local, self.grid)
        rows, columns = local.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        position = torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], dim=-1).flatten(0, 1).to(local.device)
        cells = local.flatten(2).transpose(1, 2)
        weight = cells.norm(dim=-1)
        position = position.expand(len(cells), -1, -1)
        if self.locals_ == "top":
            weight, best = weight.topk(self.top, dim=1)
            cells = cells.gather(1, best[..., None].expand(-1, -1, cells.shape[-1]))
            position = position.gather(1, best[..., None].expand(-1, -1, 2))
        leading = torch.cat([position, torch.zeros_like(position), weight[..., None]], dim=-1)
        return globals_, torch.cat([leading, F.normalize(cells, dim=-1)], dim=-1)

    def _describe(self, batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """`tables` in half precision."""
        globals_, features = self.tables(self._embedder, batch.to(self._device))
        return globals_.half().cpu().numpy(), features.half().cpu().numpy()

    @cached_property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def embedder(self) -> Embedder:
        """The model itself, to train it further.

        Raises:
            ValueError: there are no such weights, they are another model's, or were trained at another size.
        """
        if not self.weights.endswith(TRAINED):
            return Embedder.pretrained(self.model, self.weights, self.image_size, self.pooling)
        embedder = Embedder.load(Path(self.weights).expanduser())
        for name in ("model", "image_size"):
            if embedder.spec[name] != getattr(self, name):
                raise ValueError(
                    f"'{self.weights}' was trained with {name} {embedder.spec[name]!r}; set Extractor.{name} to it."
                )
        return embedder

    @cached_property
    def _embedder(self) -> Embedder:
        """The model as it describes: frozen, its batch norms folded."""
        embedder = self.embedder()
        example = torch.randn(2, 3, self.image_size, self.image_size, generator=torch.Generator().manual_seed(0))
        embedder.network = fold_batch_norms(embedder.network, example)
        return embedder.eval().requires_grad_(False).to(self._device).to(memory_format=torch.channels_last)

    def _key(self, images: ImageSet) -> str:
        """Name of the cache: of the images, the settings that change a number, and the weights."""
        settings = {name: value for name, value in asdict(self).items() if name not in ("batch", "weights")}
        file = weights_file(self.model, self.weights)
        weights = hashlib.sha256(file.read_bytes()).hexdigest() if file else self.weights
        key = json.dumps([images.fingerprint, settings, weights, timm.__version__, NUMERICS])
        return f"{self.model}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
