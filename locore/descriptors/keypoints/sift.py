"""SIFT (Lowe 2004) by OpenCV, made for geometric verification."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from locore.descriptors.keypoints import Keypoints, keypoints


@keypoints.register("sift")
class SIFT:
    """Keypoints of the strongest response; descriptors are the roots of their L1-normalised values (RootSIFT,
    Arandjelović and Zisserman 2012)."""

    width = 128

    @property
    def versions(self) -> dict[str, str]:
        import cv2

        return {"opencv": cv2.__version__, "positions": "longer side"}

    def detect(self, image: Image.Image, count: int) -> Keypoints:
        import cv2  # a second that nobody else need wait

        points, described = cv2.SIFT.create(nfeatures=count).detectAndCompute(np.asarray(image.convert("L")), None)
        strongest = sorted(range(len(points)), key=lambda i: -points[i].response)[:count]
        position = torch.tensor([points[i].pt for i in strongest]).view(-1, 2)
        weight = torch.tensor([points[i].response for i in strongest])
        if not strongest:
            return Keypoints(position, weight, torch.zeros(0, self.width))
        return Keypoints(position, weight, F.normalize(torch.from_numpy(described[strongest]), p=1, dim=1).sqrt())
