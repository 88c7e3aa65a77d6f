"""What detectors with a network share: weights of an installed package, the network built once a process."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from locore.descriptors.keypoints import Keypoints
from locore.utils import distributed
from locore.utils.packaged import packaged, packaged_version
from locore.utils.safetensors import fill, state_dict

_BUILDING = Lock()  # for threads that ask for the same network at once


class NetworkDetector(ABC):
    """A keypoint detector whose published weights come with an installed package.

    Attributes:
        width: of a descriptor.
        package: name of the distribution that has the weights.
        file: of the weights, within the package.
        network: built without arguments.
    """

    width: int
    package: str
    file: str
    network: type[nn.Module]

    @property
    def versions(self) -> dict[str, str]:
        return {self.package: packaged_version(self.package), "weights": self.file}

    def detect(self, image: Image.Image, count: int) -> Keypoints:
        pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
        return self.found(self._network, pixels[None].to(distributed.device()), count)

    @abstractmethod
    def found(self, network: Any, pixels: Tensor, count: int) -> Keypoints:
        """Find at most `count` keypoints in one image, (1, 3, H, W) in [0, 1]."""

    def tensors(self, loaded: dict[str, Any]) -> dict[str, Tensor]:
        """Return the state dict of the network from what the file holds."""
        return loaded

    @cached_property
    def _network(self) -> nn.Module:
        with _BUILDING:
            return _built(type(self))


@lru_cache
def _built(detector: type[NetworkDetector]) -> nn.Module:
    """Build the network of a detector with its weights; errors as `packaged` and `fill`."""
    network = detector.network()
    tensors = detector().tensors(state_dict(packaged(detector.package, detector.file)))
    fill(network, tensors, detector.file)
    return network.eval().requires_grad_(False).to(distributed.device())
