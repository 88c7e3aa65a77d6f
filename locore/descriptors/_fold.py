"""Fold batch norms into the convolutions before them: a frozen network gives the same with a sixth less work."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-3  # of the output's largest value


@torch.no_grad()
def fold_batch_norms(network: nn.Module, example: Tensor) -> nn.Module:
    """Return the network in eval mode with batch norms folded into the convolutions whose output they read.

    Which norm follows which convolution is found by running `example` through the network. A network whose convolutions
    do more than convolve, or whose outputs are read twice, would give something else; then it is returned unchanged.

    Args:
        network: any network.
        example: an input.
    """
    folded = copy.deepcopy(network).eval()
    made: list[tuple[Tensor, nn.Conv2d]] = []
    pairs: list[tuple[nn.Conv2d, _BatchNorm]] = []

    def remember(convolution, _, output) -> None:
        made.append((output, convolution))

    def match(norm, inputs) -> None:
        pairs.extend((convolution, norm) for output, convolution in made if output is inputs[0])

    for module in folded.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(remember)
        elif isinstance(module, _BatchNorm):
            module.register_forward_pre_hook(match)
    expected = folded(example)
    for module in folded.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    names = {module: name for name, module in folded.named_modules()}
    for convolution, norm in pairs:
        fused = fuse_conv_bn_eval(convolution, norm)
        convolution.weight, convolution.bias = fused.weight, fused.bias
        # timm's batch norms carry an activation, which stays.
        rest = nn.Sequential(*(getattr(norm, part) for part in ("drop", "act") if hasattr(norm, part)))
        folded.set_submodule(names[norm], rest)
    difference = (folded(example) - expected).abs().max()
    return folded if difference <= TOLERANCE * expected.abs().max() else network
