"""Extract descriptors of images with any timm model, cached on disk so that no run extracts twice."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import timm
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from backbones.registry import suggest
from backbones.settings import check_types
from locore.datasets._images import on_white
from locore.datasets.benchmark import ImageSet, Subset
from locore.descriptors._fold import fold_batch_norms
from locore.descriptors.detectors import class_attention, trained_detector
from locore.descriptors.embedder import BUNDLED, Embedder, any_size, is_trained, weights_file
from locore.descriptors.keypoints import KeypointDetector, describe_keypoints, keypoints
from locore.descriptors.pooling import POOLINGS, Attention
from locore.descriptors.shards import write_parts
from locore.descriptors.table import LEADING, MISSING, Descriptors, read_arrays, unpack, write_arrays
from locore.utils import distributed
from locore.utils.files import cache_folder, check_cache
from locore.utils.renamed import original_keys

log = logging.getLogger(__name__)

UNTRAINED = [name for name in POOLINGS if name != "attention"]  # which is a trained embedder's
_BUILDING = Lock()  # for threads that ask for the same network at once
NUMERICS = 3  # counts the changes of this file that change a last digit of a descriptor


@dataclass(frozen=True)
class Extractor:
    """Global and local descriptors of a frozen model.

    Attributes:
        model: name of a timm model.
        weights: "bundled" (ImageNet's, of tf_efficientnet_lite0, installed by pip), "pretrained" (timm's download),
            "random" (seed 0), a file with a state dict, or a file that `experiments.embed` wrote.
        image_size: side in pixels that images are resized to.
        keep_aspect_ratio: image_size is the longer side (of the whole image if a query is cut out of it), and each
            image is described alone; False = images are made square.
        pooling: of the last feature map into the global descriptor, see `Embedder`; a trained embedder has its own.
        local_stage: feature map of the local descriptors, an index into timm's intermediate maps; None = the last map.
        scales: factors of image_size at which images are described; global descriptors are averaged, local ones
            compete.
        local_features: "grid" = cells of the map, averaged to `grid_size` × `grid_size`; "top" = the `top_k` cells with
            the largest weight; "sift", "xfeat", "aliked", "disk" or a registered name = the `top_k` strongest keypoints
            of that detector, whatever the model and `local_stage` are.
        grid_size: side of the grid in cells.
        top_k: number of cells or keypoints.
        detector: weight of a cell: "norm", "class" (the attention of a transformer's class token), or the file of an
            embedder that pools by attention, as `experiments.embed --gin gin/embed/detector.gin` writes it.
        batch_size: images in a forward pass, if they are of one size.
    """

    model: str = BUNDLED
    weights: str = "bundled"
    image_size: int = 96
    keep_aspect_ratio: bool = False
    pooling: str = "avg"
    local_stage: int | None = None
    scales: tuple[float, ...] = (1.0,)
    local_features: str = "grid"
    grid_size: int = 3
    top_k: int = 16
    detector: str = "norm"
    batch_size: int = 64

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "scales", tuple(self.scales))  # gin may have written a list
        for option, value, known in (
            ("pooling", self.pooling, UNTRAINED),
            ("local_features", self.local_features, ("grid", "top", *keypoints.available())),
        ):
            if value not in known:
                raise ValueError(f"Extractor.{option} = '{value}' is unknown{suggest(value, known)}")
        for option in ("batch_size", "top_k", "grid_size", "image_size"):
            if getattr(self, option) < 1:
                raise ValueError(f"Extractor.{option} = {getattr(self, option)} must be at least 1.")
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"Extractor.scales = {self.scales} must be one or more positive numbers.")
        if self.local_features == "grid" and len(self.scales) > 1:
            raise ValueError(
                "Extractor.scales has several scales, and a grid needs one; set Extractor.local_features = 'top'."
            )
        if self.local_features != "top" and self.detector != "norm":
            raise ValueError("Extractor.detector needs cells to choose from; set Extractor.local_features = 'top'.")
        if (len(self.scales) > 1 or self.keep_aspect_ratio) and not any_size(self.model):
            raise ValueError(
                f"{self.model} takes images of one size; leave Extractor.scales and Extractor.keep_aspect_ratio out."
            )
        if self.detector == "class" and self.local_stage is not None:
            raise ValueError("Extractor.detector = 'class' weighs the last map; leave Extractor.local_stage at None.")
        weights_file(self.model, self.weights)

    @property
    def search_settings(self) -> dict[str, Any]:
        """Settings that global descriptors follow from, by name."""
        names = ("model", "weights", "image_size", "keep_aspect_ratio", "pooling", "scales")
        return {f"Extractor.{name}": getattr(self, name) for name in names}

    @property
    def locals_per_image(self) -> int:
        """L, the number of local descriptors of an image."""
        return self.grid_size**2 if self.local_features == "grid" else self.top_k

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Widths of a global and of a local descriptor."""
        with torch.inference_mode():
            global_matrix, features = self.tables(self._embedder, [Image.new("RGB", (8, 8))])
        if self._keypoints:  # one colour has none
            return global_matrix.shape[1], self._keypoints.width
        count = int((features[0, :, MISSING] == 0).sum())
        if count < self.locals_per_image:
            raise ValueError(f"Extractor.top_k = {self.top_k}, but a square image has {count} cells; raise image_size.")
        return global_matrix.shape[1], features.shape[2] - LEADING

    def extract(self, images: ImageSet) -> Descriptors:
        """Describe all images of a set, from the cache if they are there.

        Raises:
            ValueError: an image cannot be read.
        """
        if isinstance(images, Subset):
            return self.extract(images.base)[torch.from_numpy(images.indices)]
        path = cache_folder() / "descriptors" / f"{self._key(images)}.h5"
        cached = _cached(path, len(images))
        if all(distributed.gathered(cached is not None)) and cached:
            log.info("Descriptors of %d images: cached in %s.", len(images), path)
            return unpack(*map(torch.from_numpy, cached))
        check_cache()
        listed = hashlib.sha256(repr([self.fingerprint, *images.names]).encode()).hexdigest()[:16]
        folder = path.with_name(f"{self.model}-{listed}.parts")  # the same after one image is mended
        described = self.parts(images, folder)
        try:
            parts = [read_arrays(*part) for part in described]
        except FileNotFoundError:  # another run has described the same images, and is done
            parts = [read_arrays(path, len(images))]
        global_matrix, features = (np.concatenate(each) for each in zip(*parts, strict=True))
        distributed.wait()  # till all have read the parts
        if distributed.first():
            write_arrays(path, global_matrix, features)
            for part, _ in described:
                part.unlink(missing_ok=True)
            with suppress(OSError):  # another run may have parts of its own there
                folder.rmdir()
        distributed.wait()
        return unpack(torch.from_numpy(global_matrix), torch.from_numpy(features))

    def parts(self, images: ImageSet, folder: Path) -> list[tuple[Path, int]]:
        """Describe images into part files of a folder, except those that are there.

        Args:
            images: the images.
            folder: of the files, which `write_arrays` writes.

        Returns:
            Each file with its number of rows.

        Raises:
            ValueError: an image cannot be read.
        """
        _ = self._embedder  # built here, not by two threads at once

        def load(rows: range) -> list[list[Tensor]]:
            return self._inputs(self._embedder, [images.image(i) for i in rows])

        def key(rows: range) -> str:
            known = f"{self.fingerprint} {images.fingerprint_of(np.array(rows))}"
            return hashlib.sha256(known.encode()).hexdigest()[:16]

        with torch.inference_mode():
            detects = self._keypoints is not None and torch.cuda.is_available()
            return write_parts(len(images), self.batch_size, load, self._describe, folder, key, detects)

    def describe(self, images: Sequence[Image.Image]) -> Descriptors:
        """Describe images in memory, without the cache."""
        with torch.inference_mode():
            inputs = self._inputs(self._embedder, [on_white(image) for image in images])
            return unpack(*map(torch.from_numpy, self._describe(inputs)))

    def tables(self, embedder: Embedder, images: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """Describe images, differentiably.

        Args:
            embedder: the network.
            images: RGB.

        Returns:
            Global descriptors (N, Dg) and features (N, L, 5 + D) as `write_arrays` has them.
        """
        tables = [self._table(embedder, inputs) for inputs in self._inputs(embedder, images)]
        global_matrix, features = (torch.cat(each) for each in zip(*tables, strict=True))
        return global_matrix, features

    def _inputs(self, embedder: Embedder, images: Sequence[Image.Image]) -> list[list[Tensor]]:
        """Prepare images that are described together: (N, 3, H, W) of each scale, then the keypoints if set."""
        together = [[image] for image in images] if self.keep_aspect_ratio else [images]
        inputs = [[embedder.input(some, scale, self.keep_aspect_ratio) for scale in self.scales] for some in together]
        if self._keypoints:
            for each, some in zip(inputs, together, strict=True):
                each.append(describe_keypoints(self._keypoints, some, self.top_k))
        return inputs

    def _table(self, embedder: Embedder, inputs: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        device = next(embedder.parameters()).device
        inputs = [each.to(device) for each in inputs]
        scaled = inputs[: len(self.scales)]
        found = [self._at_scale(embedder, each, number) for number, each in enumerate(scaled)]
        global_matrix, cells = zip(*found, strict=True)
        together = global_matrix[0] if len(scaled) == 1 else F.normalize(torch.stack(global_matrix).mean(0), dim=-1)
        if self._keypoints:
            return together, inputs[-1]
        features = torch.cat(cells, dim=1)
        if self.local_features == "top":
            missing = self.top_k - features.shape[1]
            if missing > 0 and self.keep_aspect_ratio:  # a narrow image has fewer cells than others
                features = F.pad(features, (0, 0, 0, missing))
                features[:, -missing:, MISSING] = 1
            elif missing > 0:
                count = features.shape[1]
                raise ValueError(
                    f"Extractor.top_k = {self.top_k}, but the feature maps have {count} cells; raise image_size."
                )
            best = features[..., LEADING - 1].topk(self.top_k, dim=1).indices
            features = features.gather(1, best[..., None].expand(-1, -1, features.shape[-1]))
        return together, features

    def _at_scale(self, embedder: Embedder, images: Tensor, number: int) -> tuple[Tensor, Tensor]:
        """Describe images (N, 3, H, W) at one scale: global descriptors, and features of all cells."""
        with class_attention(embedder.network) if self.detector == "class" else nullcontext() as seen:
            last, local = embedder.maps(images, self.local_stage)
        global_matrix = embedder.describe(last)
        if self.local_features == "grid":
            local = F.adaptive_avg_pool2d(local, self.grid_size)
        rows, columns = local.shape[-2:]
        y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        position = torch.stack([(x + 0.5) / columns, (y + 0.5) / rows], dim=-1).flatten(0, 1).to(local.device)
        cells = rearrange(local, "n c h w -> n (h w) c")
        if self.detector == "norm":
            weight = cells.norm(dim=-1)
        else:
            weight = seen.weights if seen else self._detector.weights(local).flatten(1)
        position = position.expand(len(cells), -1, -1)
        scale = torch.full_like(weight, number)
        leading = torch.cat([position, torch.stack([scale, torch.zeros_like(weight), weight], dim=-1)], dim=-1)
        return global_matrix, torch.cat([leading, F.normalize(cells, dim=-1)], dim=-1)

    def _describe(self, inputs: list[list[Tensor]]) -> tuple[np.ndarray, np.ndarray]:
        """Describe prepared images, in half precision."""
        tables = [self._table(self._embedder, each) for each in inputs]
        global_matrix, features = (torch.cat(each).half().cpu().numpy() for each in zip(*tables, strict=True))
        return global_matrix, features

    def embedder(self) -> Embedder:
        """Return the model itself, to train it further.

        Raises:
            ValueError: the weights are missing, belong to another model, or were trained at another size.
        """
        return _network(self.model, self.weights, self.image_size, self.pooling)

    @cached_property
    def _embedder(self) -> Embedder:
        """The model as it describes images; extractors with the same model share it."""
        file = weights_file(self.model, self.weights)
        version = (file.stat().st_size, file.stat().st_mtime_ns) if file and file.exists() else None
        with _BUILDING:
            return _frozen(self.model, self.weights, version, self.image_size, self.pooling)

    @cached_property
    def _keypoints(self) -> KeypointDetector | None:
        """The detector of keypoints; None = local descriptors are cells."""
        return None if self.local_features in ("grid", "top") else keypoints.create(self.local_features)

    @cached_property
    def _detector(self) -> Attention:
        embedder = Embedder.load(Path(self.detector).expanduser())
        if embedder.spec["model"] != self.model:
            raise ValueError(
                f"The detector '{self.detector}' was trained on {embedder.spec['model']}, not on {self.model}."
            )
        return trained_detector(embedder).to(distributed.device())

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the weights and of the settings that change a number; the same as under the settings' first names."""
        own = {name: value for name, value in asdict(self).items() if name not in ("batch_size", "weights")}
        settings = original_keys("Extractor", own)
        if self._keypoints:
            settings |= self._keypoints.versions
        if self.detector not in ("norm", "class"):
            settings["detector"] = _hash(Path(self.detector).expanduser())
        file = weights_file(self.model, self.weights)
        key = json.dumps([settings, _hash(file) if file else self.weights, timm.__version__, NUMERICS])
        return hashlib.sha256(key.encode()).hexdigest()[:16]

    def _key(self, images: ImageSet) -> str:
        """Return the name of the cache file."""
        return f"{self.model}-{hashlib.sha256(f'{self.fingerprint} {images.fingerprint}'.encode()).hexdigest()[:16]}"


def _network(model: str, weights: str, image_size: int, pooling: str) -> Embedder:
    """Build the network of an extractor with these settings; errors as `Extractor.embedder`."""
    path = Path(weights).expanduser()
    if not is_trained(path):
        return Embedder.pretrained(model, weights, image_size, pooling)
    embedder = Embedder.load(path)
    for name, value in (("model", model), ("image_size", image_size)):
        if embedder.spec[name] != value:
            raise ValueError(
                f"'{weights}' was trained with {name} {embedder.spec[name]!r}; set Extractor.{name} to it."
            )
    return embedder


@lru_cache(maxsize=2)  # to build one takes as long as to describe a hundred images
def _frozen(model: str, weights: str, version: tuple[int, int] | None, image_size: int, pooling: str) -> Embedder:
    """Build the network frozen, with folded batch norms; `version` of its file changes when the file does."""
    embedder = _network(model, weights, image_size, pooling)
    example = torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(0))
    embedder.network = fold_batch_norms(embedder.network, example)
    return embedder.eval().requires_grad_(False).to(distributed.device()).to(memory_format=torch.channels_last)


def _hash(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ValueError(
            f"The weights '{path}' cannot be read ({error.strerror}); give a file that is there."
        ) from error


def _cached(path: Path, rows: int) -> tuple[np.ndarray, np.ndarray] | None:
    try:
        return read_arrays(path, rows)
    except FileNotFoundError:
        return None
    except ValueError as error:
        log.warning("%s The descriptors will be extracted again.", error)
        return None
