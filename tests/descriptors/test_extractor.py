"""Extraction: what it gives, its cache, and how it goes on after a kill or damage."""

import socket
from dataclasses import replace

import h5py
import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from small_inputs import write_glyphs

from locore.datasets import benchmarks
from locore.datasets._images import FileImages
from locore.descriptors import Extractor, embedder, shards
from locore.descriptors import extractor as extractor_module
from locore.descriptors._fold import fold_batch_norms
from locore.descriptors.augment import AnyView, View
from locore.descriptors.embedder import Embedder
from locore.descriptors.pooling import POOLINGS
from locore.descriptors.table import read_arrays, write_arrays
from locore.reranking import Shortlist
from locore.utils.files import _host, cache_folder

QUICK = Extractor(image_size=32, local_stage=3, grid_size=2, batch_size=4)


@pytest.fixture
def images(tmp_path):
    return benchmarks.create("folder", path=str(write_glyphs(tmp_path / "images", classes=6, images=4))).gallery


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path, cache):
    """Images are drawn from the shared cache, descriptors are kept in one of this test's own."""
    write_glyphs(tmp_path / "warm", classes=1, images=1)
    monkeypatch.setattr(extractor_module, "cache_folder", lambda: tmp_path / "cache")


def files(tmp_path):
    return sorted((tmp_path / "cache" / "descriptors").glob("*.h5"))


def test_a_grid_of_unit_descriptors_with_their_places(images):
    found = QUICK.extract(images)
    assert found.global_descriptor.shape == (12, 1280) and found.local.shape == (12, 4, 112)
    assert QUICK.sizes == (1280, 112) and QUICK.locals_per_image == 4
    for rows in (found.global_descriptor, found.local):
        torch.testing.assert_close(rows.float().norm(dim=-1), torch.ones(rows.shape[:-1]), atol=2e-3, rtol=0)
    assert found.position[0].tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    alone = QUICK.describe([images.image(2), images.image(5)])
    torch.testing.assert_close(alone.local, found.local[[2, 5]], atol=2e-3, rtol=0)
    assert found.mask.all() and (found.scale == 0).all()


def test_global_descriptors_are_the_pooled_map_of_the_bundled_weights(images):
    network = timm.create_model("tf_efficientnet_lite0", num_classes=0).eval()
    embedder._load(network, embedder.weights_file(QUICK.model, QUICK.weights))
    batch = QUICK._embedder.input([images.image(i) for i in range(3)])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network(batch), dim=-1)
    torch.testing.assert_close(QUICK.extract(images).global_descriptor[:3].float(), expected, atol=2e-3, rtol=0)


def test_folding_changes_nothing_and_leaves_alone_what_it_cannot_fold():
    example = torch.randn(2, 3, 32, 32)
    network = timm.create_model("resnet18", num_classes=0).eval()
    folded = fold_batch_norms(network, example)
    kinds = [type(module).__name__ for module in folded.modules()]
    assert folded is not network and "BatchNorm2d" not in kinds
    torch.testing.assert_close(folded(example), network(example), atol=1e-4, rtol=1e-4)

    class Twice(torch.nn.Module):
        """Reads a convolution both before and behind its norm."""

        def __init__(self):
            super().__init__()
            self.convolution, self.norm = torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)
            self.norm.running_mean.fill_(1)

        def forward(self, x):
            x = self.convolution(x)
            return x + self.norm(x)

    twice = Twice().eval()
    assert fold_batch_norms(twice, example) is twice


def test_the_strongest_cells_come_first(images):
    found = Extractor(image_size=64, local_stage=3, local_features="top", top_k=5).extract(images)
    assert found.local.shape[1] == 5
    assert (found.weight.diff(dim=1) <= 0).all()
    with pytest.raises(ValueError, match=r"Extractor\.top_k = 99"):
        _ = Extractor(image_size=32, local_stage=3, local_features="top", top_k=99).sizes


def test_gem_lies_between_mean_and_maximum():
    features = torch.rand(2, 3, 4, 4)
    pooled = POOLINGS["gem"](5)(features)
    assert (features.mean((2, 3)) <= pooled).all() and (pooled <= features.amax((2, 3))).all()


def test_the_file_has_the_layout_of_ames_and_is_reused(images, tmp_path, monkeypatch):
    first = QUICK.extract(images)
    (path,) = files(tmp_path)
    with h5py.File(path) as file:
        assert file["features"].shape == (12, 4, 5 + 112)
        np.testing.assert_array_equal(file["features"][..., 3], 0)
    monkeypatch.setattr(Extractor, "_describe", lambda *_: pytest.fail("extracted again"))
    again = Extractor(image_size=32, local_stage=3, grid_size=2, batch_size=8).extract(images)
    assert torch.equal(first.local, again.local)
    rows = np.array([3, 1])
    assert torch.equal(QUICK.extract(images.subset(rows)).local, first.local[rows])


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_made_again(images, tmp_path, damage, caplog):
    first = QUICK.extract(images)
    (path,) = files(tmp_path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes({"cut": content[: len(content) // 2], "flipped": bytes(content), "empty": b""}[damage])
    assert torch.equal(QUICK.extract(images).local, first.local)
    assert "damaged" in caplog.text


def test_weights_that_cannot_be_downloaded_are_reported_at_once(tmp_path, monkeypatch):
    def unknown(*_):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match=r"weights of 'resnet18' cannot be downloaded .* cannot be reached"):
        Embedder.pretrained("resnet18", "pretrained", 32, "avg")
    assert not constants.HF_HUB_OFFLINE  # what others ask for later may be reached


def test_a_killed_run_resumes_after_the_last_part(images, tmp_path, monkeypatch):
    whole = QUICK.extract(images)
    files(tmp_path)[0].unlink()
    monkeypatch.setattr(shards, "PART", 4)
    describe, calls = Extractor._describe, []

    def dying(self, inputs):
        calls.append(len(inputs[0]))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return describe(self, inputs)

    monkeypatch.setattr(Extractor, "_describe", dying)
    with pytest.raises(KeyboardInterrupt):
        QUICK.extract(images)
    (folder,) = (tmp_path / "cache" / "descriptors").glob("*.parts")
    (part, *_) = sorted(folder.iterdir())
    part.rename(part.with_name(f".{part.name}.{_host()}-99999999-0.tmp"))  # what a kill in the middle of a write leaves
    assert torch.equal(QUICK.extract(images).local, whole.local)
    assert len(calls) == 5  # two parts, the killed one, and that one and the first again
    assert not list((tmp_path / "cache" / "descriptors").glob("*.parts"))


def test_of_a_mended_folder_only_the_part_with_the_image_is_described_again(tmp_path, monkeypatch):
    root = write_glyphs(tmp_path / "images", classes=12, images=2)
    monkeypatch.setattr(shards, "PART", 4)
    pictures = sorted(root.rglob("*.png"))
    spoilt, read = pictures[-1], []
    content = spoilt.read_bytes()
    spoilt.write_bytes(b"no image")
    describe = Extractor._describe
    monkeypatch.setattr(Extractor, "_describe", lambda self, inputs: read.append(0) or describe(self, inputs))
    names = [path.relative_to(root).as_posix() for path in pictures]
    with pytest.raises(ValueError, match="repair or remove it"):
        QUICK.extract(FileImages(root, names, np.zeros(24)))
    before = len(read)
    spoilt.write_bytes(content)
    assert len(QUICK.extract(FileImages(root, names, np.zeros(24)))) == 24
    assert before >= 4 and len(read) == 6


def test_wrong_settings_are_reported(tmp_path):
    for options, words in (
        ({"pooling": "gen"}, "did you mean 'gem'"),
        ({"local_features": "grids"}, "did you mean 'grid'"),
        ({"model": "resnet5000"}, "Unknown timm model"),
        ({"model": "resnet18"}, "'bundled' is for"),
    ):
        with pytest.raises(ValueError, match=words):
            Extractor(**options)
    with pytest.raises(ValueError, match="There are no weights at"):
        _ = Extractor(weights=str(tmp_path / "none.pth")).sizes
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="is not a state dict"):
        _ = Extractor(weights=str(tmp_path / "text.pth")).sizes
    torch.save({"epoch": 3}, tmp_path / "nested.pth")
    with pytest.raises(ValueError, match="more than a state dict"):
        _ = Extractor(weights=str(tmp_path / "nested.pth")).sizes
    torch.save({"a": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="do not belong to this model"):
        _ = Extractor(weights=str(tmp_path / "other.pth")).sizes


def test_store_refuses_another_number_of_rows(tmp_path):
    write_arrays(tmp_path / "x.h5", np.zeros((3, 4), np.float16), np.zeros((3, 2, 9), np.float16))
    with pytest.raises(ValueError, match="for 4 images"):
        read_arrays(tmp_path / "x.h5", 4)
    assert cache_folder().exists()


def test_a_cache_that_cannot_be_written_is_reported_before_the_work(images, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCORE_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(Extractor, "_describe", lambda *_: pytest.fail("described"))
    with pytest.raises(ValueError, match=r"The cache '.*/file' cannot be written .* set LOCORE_CACHE"):
        Extractor(image_size=32).extract(images)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_transformers_give_their_last_map(images, model):
    extractor = Extractor(model=model, weights="random", image_size=64, grid_size=2)
    found = extractor.extract(images.subset(np.arange(3)))
    assert extractor.sizes == (extractor._embedder.network.num_features,) * 2
    assert found.local.shape == (3, 4, extractor._embedder.network.num_features)
    assert torch.isfinite(found.local).all() and not torch.equal(found.local[0], found.local[1])


def test_views_are_changed_images_and_always_the_same(tmp_path):
    images = benchmarks.create("folder", path=str(write_glyphs(tmp_path, classes=4, images=3))).train
    view, other = View(images, 1), View(images, 2)
    same, first, second = (np.asarray(each.image(1)) for each in (images, view, other))
    assert (first != same).any() and (first != second).any()
    torch.manual_seed(5)
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert (np.asarray(View(images, 1).image(1)) == first).all()
    assert torch.equal(torch.rand(1), drawn)  # a training's own random numbers are left alone
    assert len({images.fingerprint, view.fingerprint, other.fingerprint}) == 3


def test_any_view_of_the_image_that_was_asked_for():
    described = Shortlist.random(1, 4, 2, 8, 8).candidates[0]
    table = AnyView([described, replace(described, global_descriptor=-described.global_descriptor)])
    torch.manual_seed(0)
    rows = torch.arange(4).repeat(50)
    signs = (table[rows].global_descriptor * described.global_descriptor[rows]).sum(-1)
    torch.testing.assert_close(signs.abs(), torch.ones(200))
    assert 60 < int((signs > 0).sum()) < 140 and len(table) == 4
