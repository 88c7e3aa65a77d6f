"""Files of AMES and LOCORE give what they hold row by row, and what is wrong with one is reported at once."""

import pickle
import resource
import signal

import h5py
import numpy as np
import pytest
import torch
from labelled import labelled_benchmark

from locore.datasets._train_list import read_list, write_list
from locore.descriptors import ames_files
from locore.descriptors.ames_files import Joined, Locals, Stored, on_disk
from locore.descriptors.table import Rows, unpack, write_arrays
from locore.evaluation.search import Search
from locore.reranking import ListwiseReranker, Shortlist
from locore.retrieval import search

IMAGES, TOPK, WIDTH, GLOBAL = 40, 6, 8, 12


@pytest.fixture
def features():
    random = np.random.default_rng(0)
    table = random.normal(size=(IMAGES, TOPK, 5 + WIDTH)).astype(np.float16)
    table[..., 2] = random.integers(0, 3, (IMAGES, TOPK))
    table[..., 3] = random.integers(0, 2, (IMAGES, TOPK))
    return table


@pytest.fixture
def global_matrix():
    rows = np.random.default_rng(1).normal(size=(IMAGES, GLOBAL)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def contiguous(path, features, global_matrix):
    ames_files.write_locals(path, features)


def in_chunks(path, features, global_matrix):
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, chunks=(7, TOPK, 5 + WIDTH), compression="gzip")


def of_ours(path, features, global_matrix):
    write_arrays(path, global_matrix, features)


every_layout = pytest.mark.parametrize("write", [contiguous, in_chunks, of_ours])


@every_layout
def test_rows_in_any_order_and_again(write, features, global_matrix, tmp_path):
    write(tmp_path / "locals.h5", features, global_matrix)
    rows = np.array([5, 39, 5, 0, 17])
    assert (Locals(tmp_path / "locals.h5", IMAGES)[rows] == features[rows]).all()
    first = Locals(tmp_path / "locals.h5", IMAGES, count=4)
    assert (first[rows] == features[rows, :4]).all() and (len(first), first.width) == (IMAGES, WIDTH)


@every_layout
def test_a_shortlist_from_disk_is_the_one_from_memory(write, features, global_matrix, tmp_path):
    write(tmp_path / "locals.h5", features, global_matrix)
    ames_files.write_globals(tmp_path / "global.pt", global_matrix)
    stored = Stored(ames_files.read_globals(tmp_path / "global.pt", IMAGES), Locals(tmp_path / "locals.h5", IMAGES))
    memory = unpack(torch.from_numpy(global_matrix), torch.from_numpy(features))
    assert (stored.global_matrix == memory.global_matrix).all()
    parts = []
    for name, part in (("first", slice(0, 15)), ("second", slice(15, IMAGES))):
        write(tmp_path / f"{name}.h5", features[part], global_matrix[part])
        parts.append(Stored(global_matrix[part], Locals(tmp_path / f"{name}.h5", len(features[part]))))
    joined = Joined(*parts)
    assert len(joined) == IMAGES and (joined.global_matrix[10:20] == global_matrix[10:20]).all()
    assert on_disk(joined) and on_disk(Rows(stored, torch.arange(3))) and not on_disk(memory)
    torch.manual_seed(0)
    model = ListwiseReranker("query_attention", WIDTH, GLOBAL, settings={"width": 16, "depth": 1, "heads": 2})
    rows, candidates = torch.arange(3), torch.randint(IMAGES, (3, 10))
    from_memory = model.rerank(Shortlist.gather(memory, rows, memory, candidates)).scores
    for table in (stored, joined):
        assert torch.equal(model.rerank(Shortlist.gather(table, rows, table, candidates)).scores, from_memory)
    only = torch.tensor([[0, 3], [14, 1]])  # all of them in the first of the two
    assert torch.equal(joined[only].local, memory[only].local)
    some = Rows(memory, torch.tensor([7, 2, 9]))
    assert torch.equal(some[torch.tensor([2, 0])].local, memory[torch.tensor([9, 7])].local)
    assert (some.global_matrix == global_matrix[[7, 2, 9]]).all()


@pytest.mark.parametrize("kind", [torch.from_numpy, np.asarray])
def test_neighbours_as_published(kind, tmp_path):
    table = np.stack([np.linspace(1, 0, 12).reshape(3, 4), np.arange(12).reshape(3, 4) % IMAGES])
    (tmp_path / "nn.pkl").write_bytes(pickle.dumps(kind(table)))
    found = ames_files.read_neighbours(tmp_path / "nn.pkl", 3, IMAGES)
    np.testing.assert_allclose(found.similarities, table[0], atol=1e-6)
    assert (found.indices == table[1]).all() and not found.demoted.any()


def test_a_training_list(tmp_path):
    (tmp_path / "train.txt").write_text("a/b,c.jpg,7,640,480\nd.jpg,0,10,20\n\n")
    names, landmarks, sizes = read_list(tmp_path / "train.txt")
    assert names == ["a/b,c.jpg", "d.jpg"]
    assert landmarks.tolist() == [7, 0] and sizes.tolist() == [[640, 480], [10, 20]]
    write_list(tmp_path / "again.txt", names, landmarks, sizes)
    assert (tmp_path / "again.txt").read_text() == "a/b,c.jpg,7,640,480\nd.jpg,0,10,20\n"
    (tmp_path / "train.txt").write_text("a.jpg,7,640\n")
    with pytest.raises(ValueError, match=r"Line 1 of .* is not path,landmark_id,w,h"):
        read_list(tmp_path / "train.txt")


@pytest.mark.parametrize(
    ("shape", "images", "count", "words"),
    [
        ((IMAGES, TOPK, 5 + WIDTH), 41, None, "describes 40 images, but 41"),
        ((IMAGES, TOPK, 5 + WIDTH), IMAGES, 7, "has 6 descriptors an image, but 7"),
        ((IMAGES, TOPK, 5), IMAGES, None, "it must be .*5 \\+ width\\)"),
        ((IMAGES, 5 + WIDTH), IMAGES, None, "it must be"),
    ],
)
def test_locals_of_another_shape(shape, images, count, words, tmp_path):
    ames_files.write_locals(tmp_path / "locals.h5", np.zeros(shape, dtype=np.float32))
    with pytest.raises(ValueError, match=words):
        Locals(tmp_path / "locals.h5", images, count)


def test_files_that_are_not_what_they_should_be(features, global_matrix, tmp_path):
    path = tmp_path / "file"
    for read in (
        lambda: Locals(path, 3),
        lambda: ames_files.read_globals(path, 3),
        lambda: ames_files.read_neighbours(path, 1, 1),
    ):
        with pytest.raises(ValueError, match=rf"^There (is|are) no .* at '{path}'"):
            read()
    path.write_bytes(b"damaged")
    for read, words in (
        (lambda: Locals(path, 3), "is damaged"),
        (lambda: ames_files.read_globals(path, 3), "has 7 bytes"),
        (lambda: ames_files.read_neighbours(path, 1, 1), "is not a pickle of plain values"),
    ):
        with pytest.raises(ValueError, match=words):
            read()
    ames_files.write_locals(path, np.zeros((3, 2, 9), dtype=np.int64))
    with pytest.raises(ValueError, match="has int64 of shape"):
        Locals(path, 3)
    ames_files.write_locals(path, features)
    with pytest.raises(ValueError, match="do not belong together"):
        Stored(global_matrix[:3], Locals(path, IMAGES))


def test_locals_that_nobody_wrote_or_that_lie_in_another_file(tmp_path):
    (tmp_path / "other").write_bytes(bytes(4 * 3 * 2 * 9))
    for name, options in (("unwritten.h5", {}), ("elsewhere.h5", {"external": [(str(tmp_path / "other"), 0, 216)]})):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("features", (3, 2, 9), "f4", **options)
        with pytest.raises(ValueError, match="has no rows of its own"):
            Locals(tmp_path / name, 3)


def test_half_precision_read_as_float32_is_noticed(global_matrix, tmp_path, caplog):
    ames_files.write_globals(tmp_path / "global.pt", global_matrix)
    assert (ames_files.read_globals(tmp_path / "global.pt", IMAGES) == global_matrix).all() and not caplog.text
    global_matrix.astype(np.float16).tofile(tmp_path / "global.pt")
    assert ames_files.read_globals(tmp_path / "global.pt", IMAGES).shape == (IMAGES, GLOBAL // 2)
    assert "Is it float32?" in caplog.text


@pytest.mark.parametrize(
    ("table", "words"),
    [
        (torch.zeros(2, 3, 5, dtype=torch.complex64), "has complex numbers"),
        (np.zeros((2, 2, 5)), r"it must be \(2, 3, neighbours\)"),
        (np.full((2, 3, 5), 40), "names image 40, and the gallery has 40"),
        (np.full((2, 3, 5), 0.5), "not whole numbers"),
        (np.array(["a"]), "it must be"),
    ],
)
def test_damaged_neighbours_are_reported(table, words, tmp_path):
    (tmp_path / "nn.pkl").write_bytes(pickle.dumps(table))
    with pytest.raises(ValueError, match=words):
        ames_files.read_neighbours(tmp_path / "nn.pkl", 3, IMAGES)


def test_neighbours_and_descriptors_that_would_spoil_a_table_in_silence(features, global_matrix, tmp_path):
    table = np.stack([np.zeros((2, 3)), [[0, 1, 2], [1, 3, 1]]]).astype(np.float32)
    for spoilt, words in (
        (table, "names an image twice for query 1"),
        (np.where(table == 3, np.nan, table), "not finite"),
        (np.where(table == 3, -1, table), "names image -1"),
        ([[[0.5]], [[1], [2, 3]]], "different lengths"),
    ):
        (tmp_path / "nn.pkl").write_bytes(pickle.dumps(spoilt))
        with pytest.raises(ValueError, match=words):
            ames_files.read_neighbours(tmp_path / "nn.pkl", 2, 9)
    features[7, 1, 9] = np.nan
    ames_files.write_locals(tmp_path / "locals.h5", features)
    with pytest.raises(ValueError, match=r"not finite \(image 7\)"):
        Locals(tmp_path / "locals.h5", IMAGES)[np.array([3, 7])]


def test_a_shortlist_with_the_query_itself_is_that_much_shorter():
    """Leave-one-out: the query is on its own list, so of three there are two candidates."""
    rows = torch.nn.functional.normalize(torch.randn(6, 4), dim=1)
    table = Shortlist.random(1, 6, 2, 4, 4).candidates[0]
    labels, own = np.array([0, 0, 0, 1, 1, 1]), np.arange(6)
    listed = search(rows.numpy(), rows.numpy(), 3)
    benchmark = labelled_benchmark(labels, labels, own)
    found = Search.build(benchmark, table, table, 2, neighbours=listed)
    assert not (found.neighbours.indices == own[found.rows][:, None]).any() and found.neighbours.indices.shape == (6, 2)
    with pytest.raises(ValueError, match="have 2 candidates, but 3"):
        Search.build(benchmark, table, table, 3, neighbours=listed)


def test_packed_bits_are_read_as_signs(features, tmp_path):
    """As ELViS reads its files: twice numpy.unpackbits less 1, with the fields in either order."""
    packed = ames_files.pack_bits(features)
    turned = np.empty(packed.shape, [(name, packed.dtype[name]) for name in ("descriptor", "metadata")])
    turned["descriptor"], turned["metadata"] = packed["descriptor"], packed["metadata"]
    rows = np.array([5, 39, 5])
    for number, table in enumerate((packed, turned)):
        ames_files.write_locals(tmp_path / f"{number}.h5", table)
        stored = Locals(tmp_path / f"{number}.h5", IMAGES, count=4)
        found = stored[rows]
        assert stored.packed and stored.width == WIDTH and found.shape == (3, 4, 5 + WIDTH)
        assert (found[..., :5] == features[rows, :4, :5]).all()
        assert (found[..., 5:] == np.where(features[rows, :4, 5:] > 0, 1, -1)).all()
    raw = [((2 * np.unpackbits(packed["descriptor"][row], axis=-1).astype(float)) - 1)[:4] for row in rows]
    assert (np.stack(raw) == found[..., 5:]).all()
    ames_files.write_locals(
        tmp_path / "other.h5", packed.astype([("metadata", "f2", (5,)), ("descriptor", "u2", (1,))])
    )
    with pytest.raises(ValueError, match="or bits: 'metadata' and 'descriptor'"):
        Locals(tmp_path / "other.h5", IMAGES)


def test_a_full_disk_is_reported_and_leaves_nothing_behind(tmp_path):
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
        with pytest.raises(OSError):
            write_arrays(tmp_path / "x.h5", np.ones((90, 64), "f2"), np.ones((90, 9, 64), "f2"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())
