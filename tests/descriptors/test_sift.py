"""SIFT as local descriptors, by what is known of two views of one wall."""

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from locore.datasets.posters import Camera
from locore.descriptors import Extractor
from locore.descriptors.keypoints import describe_keypoints, keypoints
from locore.reranking import Shortlist
from locore.reranking.classical.geometric import Geometric

TOP = 150


@pytest.fixture(scope="module")
def extractor():
    return Extractor(image_size=32, local_features="sift", top_k=TOP)


def test_keypoints_are_opencvs_strongest_with_the_roots_of_their_shares():
    image = Camera(0, 3, 1).render()
    (found,) = describe_keypoints(keypoints.create("sift"), [image], TOP)
    points, described = cv2.SIFT_create().detectAndCompute(np.asarray(image.convert("L")), None)
    strongest = np.argsort([-p.response for p in points], kind="stable")[:TOP]
    real = int((found[:, 3] == 0).sum())
    assert real == min(TOP, len(points)) > 30
    np.testing.assert_allclose(found[:real, 4], [points[i].response for i in strongest], rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found[:real, 5:], axis=1), 1, rtol=1e-4)
    shares = found[:real, 5:].numpy() ** 2
    places = [tuple(np.float32(points[i].pt)) for i in strongest]
    for row in (0, real // 2):
        same = [i for i in strongest if tuple(np.float32(points[i].pt)) == places[row]]
        wanted = [described[i] / described[i].sum() for i in same]
        assert min(np.abs(shares[row] - each).max() for each in wanted) < 1e-4


def test_an_image_without_keypoints_has_none(extractor):
    described = extractor.describe([Image.new("RGB", (90, 60), "white")])
    assert described.local.shape == (1, TOP, 128) and not described.mask.any()
    assert extractor.sizes[1] == 128


@pytest.mark.slow
def test_views_of_one_wall_are_told_from_others(extractor):
    views = [Camera(0, wall, view) for wall in range(6) for view in range(8)]
    walls = np.repeat(np.arange(6), 8)
    seen = np.stack([view.seen() for view in views])
    described = extractor.describe([view.render() for view in views])
    everyone = torch.arange(len(views)).expand(len(views), -1)
    ranking = Geometric().rerank(Shortlist.gather(described, torch.arange(len(views)), described, everyone))
    common = (seen.astype(float) @ seen.T) / np.minimum.outer(seen.sum(1), seen.sum(1)).clip(1)
    same = (walls[:, None] == walls) & (common > 0.6) & ~np.eye(len(views), dtype=bool)
    scores = ranking.scores.numpy()
    assert same.sum() > 20
    assert np.median(scores[same]) > 2 * np.median(scores[walls[:, None] != walls])
