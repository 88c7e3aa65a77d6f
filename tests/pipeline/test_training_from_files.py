"""Training on descriptors that someone has extracted, which are never all in memory."""

import json
import pickle

import numpy as np
import pytest
from safetensors.numpy import load_file

from experiments.run import main
from locore.datasets import benchmarks
from locore.descriptors import ames_files
from locore.descriptors.files import Files
from locore.pipeline.train import neighbours_within
from locore.retrieval import search
from locore.training.loop import Training

LANDMARKS, IMAGES, LOCALS, WIDTH, GLOBAL = 30, 8, 4, 12, 16  # of each landmark
TRAIN = LANDMARKS * IMAGES


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """GLDv2's lists, and descriptors in which a landmark's images are alike."""
    root, random = tmp_path_factory.mktemp("gldv2"), np.random.default_rng(0)
    names = [f"a{n:05x}" for n in range(60)]
    (root / "index.csv").write_text("id\n" + "\n".join(names) + "\n")
    asked = "".join(f"q{n:05x},{' '.join(names[6 * n : 6 * n + 6])},Public\n" for n in range(10))
    (root / "retrieval_solution_v2.1.csv").write_text(f"id,images,Usage\n{asked}")
    (root / "train.txt").write_text("".join(f"train/{n}.jpg,{n // IMAGES},9,9\n" for n in range(TRAIN)))
    labels = {"query": np.arange(10), "gallery": np.arange(60) // 6, "train": 10 + np.arange(TRAIN) // IMAGES}
    middles = random.normal(size=(10 + LANDMARKS, GLOBAL))
    parts = random.normal(size=(10 + LANDMARKS, LOCALS, WIDTH))
    for what, known in labels.items():
        rows = middles[known] + random.normal(size=(len(known), GLOBAL))
        rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
        ames_files.write_globals(root / f"{what}_global", rows)
        features = np.zeros((len(known), LOCALS, 5 + WIDTH), dtype=np.float16)
        local = parts[known] + random.normal(size=(len(known), LOCALS, WIDTH))
        features[..., 5:] = local / np.linalg.norm(local, axis=-1, keepdims=True)
        ames_files.write_locals(root / f"{what}_local", features)
        if what == "train":
            found = search(rows, rows, 100, np.arange(TRAIN))
            (root / "nn_train.pkl").write_bytes(
                pickle.dumps(np.stack([found.similarities, found.indices.astype(np.float32)]))
            )
    return root


def run(root, out, *lines):
    settings = [
        "Data.benchmark = 'gldv2'",
        f"gldv2.root = '{root}'",
        f"gldv2.train_list = '{root / 'train.txt'}'",
        "Experiment.files = @Files()",
        *(f"Files.{w}_{k} = '{root / f'{w}_{k}'}'" for w in ("query", "gallery", "train") for k in ("global", "local")),
        f"Files.locals_per_image = {LOCALS}",
        "Reranking.candidates = 8",
        "query_attention.depth = 1",
        "query_attention.width = 32",
        "query_attention.heads = 2",
        "Training.steps = 8",
        "Training.batch_size = 8",
        "Training.validate_every = 4",
        *lines,
    ]
    arguments = [part for line in settings for part in ("--set", line)]
    return main(["--gin", "gin/query_attention.gin", "--out", str(out), *arguments])


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_neighbours_that_are_searched_or_read_give_the_same_training(root, tmp_path):
    assert run(root, tmp_path / "searched") == 0
    assert run(root, tmp_path / "read", f"Files.train_neighbours = '{root / 'nn_train.pkl'}'") == 0
    searched, read = metrics(tmp_path / "searched"), metrics(tmp_path / "read")
    assert searched["protocols"] == read["protocols"] and searched["benchmark"] == "gldv2-public"
    assert searched["reranked"] != searched["global"]


def test_landmarks_that_are_left_out_stay_in_the_files(root, tmp_path):
    lines = ["gldv2.exclude_landmarks = (3, 4)", f"Files.train_neighbours = '{root / 'nn_train.pkl'}'"]
    assert run(root, tmp_path / "less", *lines) == 0
    images = benchmarks.create(
        "gldv2", root=str(root), train_list=str(root / "train.txt"), exclude_landmarks=(3, 4)
    ).train
    files = Files(
        **{f"{w}_{k}": str(root / f"{w}_{k}") for w in ("query", "gallery", "train") for k in ("global", "local")},
        locals_per_image=LOCALS,
        train_neighbours=str(root / "nn_train.pkl"),
    )
    whole = ames_files.read_globals(root / "train_global", TRAIN)
    assert len(images) == TRAIN - 2 * IMAGES and (files.training(images).global_matrix == whole[images.indices]).all()
    near, every = (
        files.training_neighbours(images)(np.arange(len(images))),
        ames_files.read_neighbours(root / "nn_train.pkl", TRAIN, TRAIN).indices,
    )
    known = near[5][near[5] >= 0]
    assert images.indices[known].tolist() == [n for n in every[images.indices[5]] if not 24 <= n < 40]


def test_the_papers_training_is_one_file(tmp_path, capsys):
    ames_files.write_globals(tmp_path / "dinov2_index_global.pt", np.zeros((2, 768), np.float32))
    ames_files.write_locals(tmp_path / "dinov2_index_local.hdf5", np.zeros((2, 50, 5 + 768), np.float16))
    arguments = ["--gin", "gin/paper/landmarks/train.gin", "--dry-run", "--set", f"Files.root = '{tmp_path}'"]
    assert main(arguments) == 2
    assert "https://huggingface.co/allenai/longformer-base-4096 to this folder" in capsys.readouterr().err
    assert main([*arguments, "--set", "Model.language_model = None"]) == 0
    printed = capsys.readouterr().out
    assert "= 5050 tokens" in printed and "Start of the weights: random" in printed
    # The supplement's 111.8 M with 2,048-d globals that are projected; these are as wide as the encoder already.
    assert f"Parameters: {111_830_786 - (2048 * 768 + 768):,}" in printed


@pytest.mark.parametrize("method", ["ames", "rrt", "r2former"])
def test_the_rows_of_peers_are_trained_on_the_same_lists(tmp_path, capsys, method):
    ames_files.write_globals(tmp_path / "dinov2_index_global.pt", np.zeros((2, 768), np.float32))
    ames_files.write_locals(tmp_path / "dinov2_index_local.hdf5", np.zeros((2, 50, 5 + 768), np.float16))
    arguments = ["--gin", f"gin/paper/landmarks/train_{method}.gin", "--dry-run", "--set", f"Files.root = '{tmp_path}'"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "= 5050 tokens" in printed and "Training.batch_size = 150" in printed
    if method == "ames":
        attention, norm = 4 * (768 * 768 + 768), 2 * 768
        layer = 2 * attention + 768 * 3072 + 3072 + 3072 * 768 + 768 + 3 * norm
        remap = 768 * 768 + 768 + norm
        assert f"Parameters: {768 + remap + 5 * layer + 768 + 1:,}" in printed


@pytest.mark.parametrize("validation", ["benchmark", "none"])
def test_training_images_are_all_trained_on_where_they_do_not_validate(root, tmp_path, monkeypatch, validation):
    drawn = []
    monkeypatch.setattr(Training, "over", lambda self, count: drawn.append(count) or self)
    ensemble = "Reranking.ensemble = False"
    assert run(root, tmp_path / "run", f"Data.validation = '{validation}'", ensemble) == 0
    assert drawn == [TRAIN]
    history = json.loads((tmp_path / "run" / "training.json").read_text())
    own, table = load_file(tmp_path / "run" / "model.safetensors"), metrics(tmp_path / "run")
    if validation == "benchmark":  # by its own metric, and the weights of the best validation are evaluated
        best = max(point["mAP@100"] for point in history["history"]["validation"])
        assert history["monitor"] == "mAP@100" and best == pytest.approx(table["reranked"]["mAP@100"])
    else:
        last = load_file(tmp_path / "run" / "last.safetensors")
        assert history["history"]["validation"] == [] and history["best"] is None
        assert all(np.array_equal(value, last[f"model.{name}"]) for name, value in own.items())


def test_a_validation_that_cannot_be_is_refused(root, tmp_path, capsys):
    for lines, words in (
        (["Data.validation = 'none'"], "Reranking.ensemble needs a validation, and Data.validation is 'none'"),
        (["Data.validation = 'benchmark'", "gldv2.part = 'private'"], "needs a benchmark that is for validation"),
        (["Data.validation = 'nothing'"], "Unknown Data.validation 'nothing'"),
    ):
        assert run(root, tmp_path / "run", *lines) == 2
        assert words in capsys.readouterr().err


def test_neighbours_among_the_training_images():
    random = np.random.default_rng(0)
    listed = np.stack([random.permutation(30) for _ in range(30)])
    rows = np.sort(random.permutation(30)[:20])
    found = neighbours_within(lambda asked: listed[asked], 30, rows, 5)
    for place, row in enumerate(rows):
        known = [n for n in listed[row] if n in rows and n != row]
        assert rows[found[place]].tolist() == known[:5]
    with pytest.raises(ValueError, match="only 19 neighbours among the training images, and 20"):
        neighbours_within(lambda asked: listed[asked], 30, rows, 20)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Files.train_local = None", "go together"),
        ("Files.train_global = 'no'", "There are no global descriptors at 'no'"),
        ("Files.train_local = 'no'", "There are no local descriptors at 'no'"),
        ("Files.train_neighbours = 'no'", "There are no neighbours at 'no'"),
        ("gldv2.train_list = None", "has no training images"),
        ("Sampling.views = 2", "are fixed"),
    ],
)
def test_what_is_missing_is_reported(root, tmp_path, capsys, line, words):
    assert run(root, tmp_path / "run", line) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
