"""A pretrained Vim, VideoMamba or Vision-RWKV as the start of a recurrent list-wise re-ranker."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn

from backbones.mamba import BidirectionalMamba, Mamba
from backbones.rwkv import RWKV, BidirectionalRWKV
from locore.reranking.listwise import ListwiseReranker
from locore.utils import safetensors

# Name in a layer of Vim and VideoMamba (`layers.N.`) -> ours; the suffix _b is the direction from the end.
MAMBA = {
    "norm.weight": "norm.weight",
    "mixer.in_proj.weight": "in_proj.weight",
    "mixer.out_proj.weight": "out_proj.weight",
    "mixer.A_log": "ahead.A_log",
    "mixer.A_b_log": "back.A_log",
}
MAMBA |= {
    f"mixer.{name}{suffix}{part}": f"{ours}.{name}{part}"
    for suffix, ours in (("", "ahead"), ("_b", "back"))
    for name, part in (
        ("D", ""),
        ("conv1d", ".weight"),
        ("conv1d", ".bias"),
        ("x_proj", ".weight"),
        ("dt_proj", ".weight"),
        ("dt_proj", ".bias"),
    )
}
# Name in a layer of Vision-RWKV -> ours.
TIME, CHANNEL = ("key", "value", "receptance", "output"), ("key", "value", "receptance")
RWKV_NAMES = {
    **{f"ln1.{part}": f"time_norm.{part}" for part in ("weight", "bias")},
    **{f"ln2.{part}": f"channel_norm.{part}" for part in ("weight", "bias")},
    **{f"att.{name}.weight": f"time_mix.{name}.weight" for name in TIME},
    **{f"ffn.{name}.weight": f"channel_mix.{name}.weight" for name in CHANNEL},
    **{f"att.spatial_mix_{name[0]}": f"time_mix.mix_{name}" for name in TIME[:3]},
    **{f"ffn.spatial_mix_{name[0]}": f"channel_mix.mix_{name}" for name in ("key", "receptance")},
    "att.spatial_decay": "time_mix.decay",
    "att.spatial_first": "time_mix.bonus",
}
# Layer scale: multiplies what a mix adds, so it goes into the last matrix.
SCALES = {"gamma1": "time_mix.output.weight", "gamma2": "channel_mix.value.weight"}


def start_from(model: ListwiseReranker, path: str | Path) -> None:
    """Fill the recurrent layers of a `mamba` or `rwkv` with those of a vision model; all else stays as it is.

    A re-ranker with fewer layers takes the first ones. What differs: Vim and VideoMamba divide by the root mean square
    where our layers also subtract the mean; Vision-RWKV shifts channels from four neighbours on a grid, ours from two
    in the list; and its bonus is divided by the number of patches that it was trained with.

    Args:
        model: with a `mamba` or `rwkv` encoder of the vision model's width.
        path: of the weights.

    Raises:
        ValueError: the file is missing or damaged, or the weights do not fit.
    """
    try:
        tensors = safetensors.state_dict(Path(path))
    except OSError as error:
        raise ValueError(
            f"The weights '{path}' cannot be read ({error.strerror}); give a file that is there."
        ) from error
    tensors = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    if not isinstance(model.encoder, Mamba | RWKV):
        raise ValueError("Only the backbones 'mamba' and 'rwkv' can start from a vision model.")
    layers, translated = _layers(tensors), _of_mamba if isinstance(model.encoder, Mamba) else _of_rwkv
    own = [layer for layer in model.encoder.layers if isinstance(layer, BidirectionalMamba | BidirectionalRWKV)]
    if len(layers) < len(own):
        raise ValueError(f"'{path}' has {len(layers)} recurrent layers, and the re-ranker has {len(own)}.")
    for number, (layer, found) in enumerate(zip(own, layers, strict=False)):
        safetensors.fill(layer, translated(found, tensors, layer), f"{path}, layer {number}")


def _layers(tensors: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    """Return the tensors of each layer, by their names in it."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if match := re.match(r"layers\.(\d+)\.(.+)", name):
            found.setdefault(int(match[1]), {})[match[2]] = value
    return [found[number] for number in sorted(found)]


def _of_mamba(layer: dict[str, Tensor], tensors: dict[str, Tensor], own: nn.Module) -> dict[str, Tensor]:
    """Return a layer of Vim or VideoMamba under our names."""
    found = {MAMBA.get(name, name): value for name, value in layer.items() if name != "norm.bias"}
    patches = tensors.get("patch_embed.proj.weight")
    if patches is not None and patches.ndim == 5 and "out_proj.weight" in found:
        found["out_proj.weight"] = 2 * found["out_proj.weight"]  # VideoMamba adds both directions, Vim averages them
    return found | {"norm.bias": layer.get("norm.bias", torch.zeros_like(own.state_dict()["norm.bias"]))}


def _of_rwkv(layer: dict[str, Tensor], tensors: dict[str, Tensor], own: nn.Module) -> dict[str, Tensor]:
    """Return a layer of Vision-RWKV under our names."""
    found = {
        RWKV_NAMES.get(name, name): value.flatten() if "spatial_mix" in name else value
        for name, value in layer.items()
        if name not in SCALES and not name.startswith("ln0.")
    }
    if (positions := tensors.get("pos_embed")) is None:
        raise ValueError("These weights have no 'pos_embed', so they are not a Vision-RWKV's.")
    if "time_mix.bonus" in found:
        found["time_mix.bonus"] = found["time_mix.bonus"] / positions.shape[1]
    for name, scaled in SCALES.items():
        if name in layer and scaled in found:
            found[scaled] = layer[name][:, None] * found[scaled]
    return found
