"""Geometric verification: matches that one transformation explains, where they are more than chance gives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.registry import suggest
from locore.descriptors.table import Descriptors
from locore.reranking.reranker import Ranking, Shortlist, at_least, only_present, rerankers

FITTED_TO = {"homography": 4, "affine": 3}  # matches that a transformation is fitted to
CONFIDENCE = 0.999  # that no better transformation is there, where iterations end before their number
LARGEST_SCALE = 5.0  # of lengths, from the query to a candidate or back: others are degenerate
CORNERS = np.array([[0, 0, 1], [1, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=float)


@rerankers.register("geometric")
@dataclass(frozen=True)
class Geometric:
    """RANSAC (Fischler and Bolles 1981; as spatial verification, Philbin et al. 2007) on mutual matches, by OpenCV's
    USAC.

    USAC (Raguram et al. 2013) does 10,000 iterations in a tenth of the time of 1,000 of OpenCV's older `RANSAC`. Only
    candidates with more inliers than chance gives move up (a contrario: Moisan and Stival 2004); the others keep the
    order of the search. Transformations that mirror, or that change lengths more than five times, have no inliers.

    Attributes:
        transformation: "homography" or "affine".
        iterations: of RANSAC, at most.
        tolerance: largest error of an inlier, as a share of the image's side.
        min_significance: -log10 of the number of as good transformations that chance gives, from which a candidate
            moves up. 6.5 is what 1 of 100 of the nearest wrong candidates reach: on training photographs of groceries,
            100 queries, 7 × 7 cells; of random wrong ones 1 of 1,000, by SIFT as well.
        ratio: distance of a match over that of the second best one at most (Lowe 2004), for keypoints; 1 = any.
    """

    search_weight: ClassVar[float] = 0.9

    transformation: str = "homography"
    iterations: int = 10_000
    tolerance: float = 0.05
    min_significance: float = 6.5
    ratio: float = 1.0

    def __post_init__(self):
        if self.transformation not in FITTED_TO:
            unknown = self.transformation
            raise ValueError(f"Unknown geometric.transformation '{unknown}'{suggest(unknown, FITTED_TO)}")
        at_least(self, iterations=1, tolerance=0.0, min_significance=0.0, ratio=0.0)

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by how much more than chance their inliers are; what is no more, by global similarity."""
        count = shortlist.similarities.shape[1]
        found = [
            [
                self.significance(query, one, self._matches(query, one))
                for one in map(candidates.__getitem__, range(count))
            ]
            for query, candidates in (
                (shortlist.query[row], shortlist.candidates[row]) for row in range(len(shortlist.similarities))
            )
        ]
        scores = torch.tensor(found, dtype=torch.float64).to(shortlist.similarities.device)
        # Below a millionth, similarities only order what is equal.
        scores = scores + 1e-6 * shortlist.similarities.double().clamp(-1, 1)
        return Ranking.by(only_present(scores, shortlist.present))

    def significance(self, query: Descriptors, candidate: Descriptors, pairs: Tensor) -> float:
        """Return -log10 of the expected number of as good transformations by chance; 0 below `min_significance`.

        Args:
            query: an image.
            candidate: an image.
            pairs: (n, 2) places of their local descriptors that match.
        """
        ours, theirs = query.position[pairs[:, 0]], candidate.position[pairs[:, 1]]
        inliers = self._inliers(ours.double().cpu().numpy(), theirs.double().cpu().numpy())
        cells = int(candidate.mask.sum())
        chance = max(math.pi * self.tolerance**2, 1 / cells) if cells else 1.0
        found = -expected_by_chance(inliers, len(pairs), FITTED_TO[self.transformation], min(chance, 0.5))
        return found if found >= self.min_significance and found > 0 else 0.0

    def _matches(self, query: Descriptors, candidate: Descriptors) -> Tensor:
        """Return (n, 2) places of local descriptors that are each other's nearest and pass the ratio test."""
        rows, columns = (torch.nonzero(d.mask)[:, 0] for d in (query, candidate))
        if not len(rows) or not len(columns):
            return rows.new_zeros(0, 2)
        similarities = F.normalize(query.local[rows], dim=-1) @ F.normalize(candidate.local[columns], dim=-1).T
        best, place = similarities.max(dim=1)
        keep = similarities.max(dim=0).indices[place] == torch.arange(len(rows), device=place.device)
        if self.ratio < 1 and len(columns) > 1:
            second = similarities.topk(2, dim=1).values[:, 1]
            keep &= (2 - 2 * best).clamp(min=0) <= self.ratio**2 * (2 - 2 * second).clamp(min=0)
        return torch.stack([rows, columns[place]], dim=1)[keep]

    def _inliers(self, one: np.ndarray, other: np.ndarray) -> int:
        """Count the inliers of matched places (n, 2) each."""
        import cv2  # a second that other re-rankers need not wait

        if len(one) <= FITTED_TO[self.transformation]:
            return 0
        fit = cv2.findHomography if self.transformation == "homography" else cv2.estimateAffine2D
        matrix, kept = fit(
            one,
            other,
            method=cv2.USAC_DEFAULT,
            ransacReprojThreshold=self.tolerance,
            maxIters=self.iterations,
            confidence=CONFIDENCE,
        )
        return 0 if matrix is None or degenerate(matrix) else int(kept.sum())


def degenerate(matrix: np.ndarray) -> bool:
    """Return whether a transformation of the unit square, (3, 3) or (2, 3), mirrors, folds or scales it extremely."""
    if matrix.shape == (2, 3):
        matrix = np.vstack([matrix, [0, 0, 1]])
    if not np.isfinite(matrix).all():
        return True
    depths = CORNERS @ matrix[2]
    if depths.min() * depths.max() <= 0:  # the line at infinity crosses the image
        return True
    centre = matrix @ [0.5, 0.5, 1]
    around = (matrix[:2, :2] - np.outer(centre[:2] / centre[2], matrix[2, :2])) / centre[2]  # derivative at the centre
    if np.linalg.det(around) <= 0:
        return True
    scales = np.linalg.svd(around, compute_uv=False)
    return bool(scales[0] > LARGEST_SCALE or scales[-1] < 1 / LARGEST_SCALE)


def expected_by_chance(inliers: int, matches: int, fitted_to: int, chance: float) -> float:
    """Return log10 of how many transformations with so many inliers are expected among random matches.

    Moisan and Stival 2004, section 3: (n - m) C(n, k) C(k, m) p^(k - m).

    Args:
        inliers: k.
        matches: n.
        fitted_to: m, matches that fix a transformation.
        chance: p, that a random match is an inlier.
    """
    if inliers <= fitted_to:
        return math.inf

    def log_choose(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    tests = math.log(max(matches - fitted_to, 1)) + log_choose(matches, inliers) + log_choose(inliers, fitted_to)
    return (tests + (inliers - fitted_to) * math.log(chance)) / math.log(10)
