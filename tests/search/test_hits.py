"""The hits of a search in, an order out."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from small_inputs import QUICK, write_glyphs

import locore
from experiments.run import main
from locore.checkpoints import native
from locore.datasets import benchmarks
from locore.descriptors import Extractor
from locore.reranking import Shortlist, Windows
from locore.reranking.classical.chamfer import Chamfer
from locore.search.hits import SYNTHETIC_SEARCH_WEIGHT, load_with_extractor

SMALL = Extractor(image_size=32, local_stage=3, grid_size=2)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def pictures(root):
    gallery = benchmarks.create("folder", path=str(root)).gallery
    return [root / gallery.names[i] for i in range(9)]


def test_hits_are_ordered_as_the_re_ranker_does(pictures):
    described = SMALL.describe([Image.open(path) for path in pictures])
    rows = torch.arange(1, 9)[None]
    lists = Shortlist.gather(described, torch.tensor([0]), described, rows)
    expected = locore.WithSearch(Chamfer(), locore.StandardisedEnsemble(Chamfer.search_weight)).rerank(lists)
    found = locore.rerank(pictures[0], pictures[1:], extractor=SMALL)
    assert found == locore.rerank(pictures[0], pictures[1:], "chamfer", SMALL)
    alone = locore.rerank(pictures[0], pictures[1:], Chamfer(), SMALL)
    assert [hit.index for hit in alone] == Chamfer().rerank(lists).order[0].tolist()
    assert [hit.index for hit in found] == expected.order[0].tolist()
    torch.testing.assert_close(torch.tensor([h.score for h in found]).double(), expected.scores[0][expected.order[0]])
    assert locore.rerank(pictures[0], [], "chamfer", SMALL) == []


def test_an_image_is_described_once(pictures, monkeypatch):
    first = locore.rerank(pictures[0], pictures[1:], Chamfer(), SMALL)
    described = []
    monkeypatch.setattr(Extractor, "describe", lambda self, images: described.extend(images))
    again = locore.rerank(str(pictures[0]), [str(path) for path in pictures[1:]], Chamfer(), SMALL)
    assert again == first and not described


def test_an_image_in_memory_is_its_file_and_what_is_damaged_is_described_anew(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCORE_CACHE", str(tmp_path))
    opened = [Image.open(path) for path in pictures]
    first = locore.rerank(opened[0], opened[1:], Chamfer(), SMALL)
    for kept in tmp_path.rglob("*.npz"):
        kept.write_bytes(kept.read_bytes()[:200])
    assert locore.rerank(opened[0], opened[1:], Chamfer(), SMALL) == first
    assert locore.rerank(pictures[0], pictures[1:], Chamfer(), SMALL) == first


def test_an_image_may_be_given_in_many_ways(pictures):
    expected = locore.rerank(pictures[0], pictures[1:], "chamfer", SMALL)
    content = [path.read_bytes() for path in pictures]
    for ways in (
        (path for path in pictures),
        content,
        map(bytearray, content),
        map(io.BytesIO, content),
        (np.asarray(Image.open(path)) for path in pictures),
    ):
        query, *hits = ways
        assert locore.rerank(query, iter(hits), "chamfer", SMALL) == expected
    with open(pictures[0], "rb") as file:
        file.read(10)  # someone looked at it
        assert locore.rerank(file, pictures[1:], "chamfer", SMALL) == expected


def test_a_cache_that_cannot_be_written_is_done_without(pictures, tmp_path, monkeypatch, caplog):
    expected = locore.rerank(pictures[0], pictures[1:], "chamfer", SMALL)
    (tmp_path / "file").touch()
    monkeypatch.setenv("LOCORE_CACHE", str(tmp_path / "file" / "cache"))
    for _ in range(2):
        assert locore.rerank(pictures[0], pictures[1:], "chamfer", SMALL) == expected
    assert caplog.text.count("cannot be written (") == caplog.text.count("Set LOCORE_CACHE to a folder") == 1


def test_threads_ask_about_the_same_new_images(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCORE_CACHE", str(tmp_path))
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda _: locore.rerank(pictures[0], pictures[1:], "chamfer", SMALL), range(8)))
    assert all(hits == found[0] for hits in found)


def test_a_run_describes_as_it_was_trained(root, pictures, tmp_path):
    lines = [*QUICK, f"folder.path = '{root}'", "Reranking.ensemble = False", "Model.positions = 'absolute'"]
    arguments = [part for line in lines for part in ("--set", line)]
    assert main(["--gin", "gin/query_attention.gin", *arguments, "--out", str(tmp_path / "run")]) == 0
    found = locore.rerank(pictures[0], pictures[1:], tmp_path / "run")
    described = SMALL.describe([Image.open(path) for path in pictures])
    model = locore.load(tmp_path / "run")
    expected = model.rerank(Shortlist.gather(described, torch.tensor([0]), described, torch.arange(1, 9)[None]))
    assert [hit.index for hit in found] == expected.order[0].tolist()
    assert locore.rerank(pictures[0], pictures[1:], model, SMALL) == found
    # More than the eight that it was trained on go through it in windows.
    files = sorted(root.rglob("*.png"))[:20]
    longer = locore.rerank(files[0], files[1:], tmp_path / "run")
    described = SMALL.describe([Image.open(path) for path in files])
    lists = Shortlist.gather(described, torch.tensor([0]), described, torch.arange(1, 20)[None])
    assert [hit.index for hit in longer] == Windows(model, 8, 4).rerank(lists).order[0].tolist()
    assert longer[0].score is None
    # A file of weights without what it was trained on is read with the extractor that is given.
    model.trained = None
    native.save(model, tmp_path / "alone" / "model.safetensors")
    assert locore.rerank(pictures[0], pictures[1:], tmp_path / "alone", SMALL) == found
    with pytest.raises(ValueError, match="give the extractor"):
        locore.rerank(pictures[0], pictures[1:], tmp_path / "alone")
    with pytest.raises(ValueError, match="give the extractor"):
        locore.rerank(pictures[0], pictures[1:], model)
    with pytest.raises(ValueError, match="local_dim 112, these have 40"):
        locore.rerank(pictures[0], pictures[1:], model, Extractor(image_size=32, local_stage=2, grid_size=2))


def test_a_run_that_was_moved_finds_the_embedder_beside_its_model(tmp_path):
    embedder = SMALL.embedder()
    embedder.save(tmp_path / "old" / "embedder.safetensors")
    extractor = Extractor(image_size=32, weights=str(tmp_path / "old" / "embedder.safetensors"))
    model = locore.ListwiseReranker("query_attention", 8, 8)
    native.save(model, tmp_path / "old" / "model.safetensors", native.Trained(extractor, 24))
    assert native.trained_on(tmp_path / "old") == native.Trained(extractor, 24)
    native.load(tmp_path / "old").save_pretrained(tmp_path / "again")
    assert native.trained_on(tmp_path / "again") == native.Trained(extractor, 24)
    (tmp_path / "old").rename(tmp_path / "new")
    found = native.trained_on(tmp_path / "new").extractor
    assert found.weights == str(tmp_path / "new" / "embedder.safetensors")
    native.load(tmp_path / "new").save_pretrained(tmp_path / "again")
    assert native.trained_on(tmp_path / "again").extractor == found


def test_what_is_wrong_is_reported(pictures, tmp_path):
    with pytest.raises(ValueError, match="did you mean 'chamfer'"):
        locore.rerank(pictures[0], pictures[1:], "chamfre")
    with pytest.raises(ValueError, match="neither a run folder nor a re-ranker without weights"):
        locore.rerank(pictures[0], pictures[1:], "ames")
    (tmp_path / "broken.png").write_bytes(b"no image")
    half = Image.open(io.BytesIO(pictures[1].read_bytes()[:800]))
    for hit, words in (
        (None, r"hits\[1\] is None, of type NoneType; give a file's path"),
        (tmp_path / "broken.png", r"Cannot read hits\[1\], '.*"),
        (b"no image" * 1000, r"Cannot read hits\[1\] \(cannot identify"),
        (half, r"Cannot read hits\[1\]"),
        ("https://example.org/a.jpg", r"hits\[1\] is an address, 'https://example.org/a.jpg'; nothing is fetched"),
        ("a\0b", r"Cannot read hits\[1\]"),
        (np.zeros((4, 4, 3)), r"hits\[1\] is an array of float64 of shape \(4, 4, 3\)"),
        (Image.new("RGB", (0, 5)), r"hits\[1\] has no pixels"),
    ):
        with pytest.raises(ValueError, match=words) as raised:
            locore.rerank(pictures[0], [pictures[1], hit], "chamfer", SMALL)
        assert len(str(raised.value)) < 300
    for hits in (set(pictures[1:3]), {"a": pictures[1]}, str(pictures[1]), pictures[1].read_bytes(), 5):
        with pytest.raises(ValueError, match="hits must be a list of images, in the order of the search, not a"):
            locore.rerank(pictures[0], hits, "chamfer", SMALL)
    for reranker in (locore.ListwiseReranker, Chamfer, object()):
        with pytest.raises(ValueError, match="is not a re-ranker; give a name"):
            locore.rerank(pictures[0], pictures[1:], reranker, SMALL)
    assert len(locore.rerank(pictures[0], pictures[1:2], "chamfer", SMALL)) == 1


def test_what_was_pretrained_on_synthetic_lists_re_ranks_photos(pictures):
    """Without a run folder, by the weights of the package, and together with the search."""
    hits = locore.rerank(pictures[0], pictures[1:], "synthetic")
    model, extractor, size = load_with_extractor("synthetic")
    assert size is None and model.reranker.spec["encoder"] == "mamba"
    described = extractor.describe([Image.open(path) for path in pictures])
    lists = Shortlist.gather(described, torch.tensor([0]), described, torch.arange(1, 9)[None])
    scores = model.reranker.rerank(lists).scores
    combined = locore.StandardisedEnsemble(SYNTHETIC_SEARCH_WEIGHT)(lists.similarities, scores)
    assert [hit.index for hit in hits] == combined.argsort(1, descending=True)[0].tolist()
    itself = Image.open(pictures[0])  # a search finds the query, if it is in the gallery
    assert [hit.index for hit in locore.rerank(itself, [pictures[0]])] == [0]
    assert locore.rerank(itself, [pictures[5], pictures[0], pictures[0]])[0].index in (1, 2)
    with pytest.raises(ValueError, match=r"reads descriptors of local_dim 112, these have"):
        locore.rerank(pictures[0], pictures[1:], "synthetic", Extractor(image_size=32, local_stage=2, grid_size=2))
