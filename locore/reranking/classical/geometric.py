"""Geometric verification: the number of matches of local descriptors that one transformation explains."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from backbones.registry import suggest
from locore.reranking.classical._matching import local_similarities, mutual
from locore.reranking.reranker import Ranking, Shortlist, at_least, only_present, rerankers

LEAST = {"homography": 4, "affine": 3}  # matches that a transformation is fitted to
CONFIDENCE = 0.999  # that no better transformation is there, where iterations end before their number


@rerankers.register("geometric")
@dataclass(frozen=True)
class Geometric:
    """RANSAC (Fischler and Bolles 1981; as spatial verification, Philbin et al. 2007) on mutual matches, by OpenCV's
    USAC.

    USAC (Raguram et al. 2013) does 10,000 iterations in a tenth of the time of 1,000 of OpenCV's older `RANSAC`.

    Attributes:
        transformation: "homography" or "affine".
        iterations: of RANSAC, at most.
        tolerance: largest error of an inlier, as a share of the image's side.
    """

    transformation: str = "homography"
    iterations: int = 10_000
    tolerance: float = 0.05

    def __post_init__(self):
        if self.transformation not in LEAST:
            unknown = self.transformation
            raise ValueError(f"Unknown geometric.transformation '{unknown}'{suggest(unknown, LEAST)}")
        at_least(self, iterations=1, tolerance=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by their number of inliers; equal numbers by global similarity."""
        matches = mutual(local_similarities(shortlist.query, shortlist.candidates)).cpu().numpy()
        ours, theirs = (d.position.float().cpu().numpy() for d in (shortlist.query, shortlist.candidates))
        inliers = np.array(
            [
                [
                    self._inliers(query[pairs[:, 0]], places[pairs[:, 1]])
                    for pairs, places in zip(lists, listed, strict=True)
                ]
                for query, lists, listed in zip(
                    ours, [[np.argwhere(m) for m in row] for row in matches], theirs, strict=True
                )
            ],
            dtype=np.float32,
        )
        scores = torch.from_numpy(inliers).to(shortlist.similarities.device)
        return Ranking.by(only_present(scores + shortlist.similarities.clamp(-1, 1) / 4, shortlist.present))

    def _inliers(self, one: np.ndarray, other: np.ndarray) -> int:
        """Count the inliers of matched places (n, 2) each."""
        import cv2  # a second that other re-rankers need not wait

        if len(one) < LEAST[self.transformation]:
            return 0
        fit = cv2.findHomography if self.transformation == "homography" else cv2.estimateAffine2D
        _, kept = fit(
            one,
            other,
            method=cv2.USAC_DEFAULT,
            ransacReprojThreshold=self.tolerance,
            maxIters=self.iterations,
            confidence=CONFIDENCE,
        )
        return 0 if kept is None else int(kept.sum())
