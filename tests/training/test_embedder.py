"""Trained global descriptors: every loss, what is frozen, resuming, halves, projected locals, and the command."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from small_inputs import QUICK, write_glyphs
from torch.nn import functional as F

from experiments import embed, run
from locore.datasets import benchmarks
from locore.descriptors import Extractor
from locore.descriptors.cross_fit import FITTED_ON, WHOLE, describe_unseen, halves, turned
from locore.descriptors.embedder import Embedder
from locore.descriptors.online import OnlineTable
from locore.training.embedder import LOSSES, Finetuning, with_locals
from locore.training.loop import Training

START = Extractor(image_size=32, local_stage=3, grid_size=2)
TRAINING = Training(steps=4, batch_size=12, warmup_steps=1, validate_every=2, learning_rate=1e-3)
SMALL = Finetuning(dim=16, images_per_class=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("images"), classes=24, images=6)


@pytest.fixture(scope="module")
def images(root):
    return benchmarks.create("folder", path=str(root)).train


def fit(settings, images, folder, training=TRAINING, seed=3):
    folder.mkdir(exist_ok=True)
    return settings.fit(START.embedder(), images, training, folder, seed)


FAST = ("multi_similarity", "normalised_softmax", "proxy_anchor")  # of pairs, of classes, of proxies


@pytest.mark.parametrize(
    "loss", [loss if loss in FAST else pytest.param(loss, marks=pytest.mark.slow) for loss in LOSSES]
)
def test_every_loss_trains_the_network_and_the_head(loss, images, tmp_path):
    trained, state = fit(replace(SMALL, loss=loss), images, tmp_path, replace(TRAINING, steps=2))
    assert len(state["history"]["loss"]) == 2 and np.isfinite(state["history"]["loss"]).all()
    start = START.embedder().network.state_dict()
    changed = [name for name, value in trained.network.state_dict().items() if not torch.equal(value, start[name])]
    assert changed and not any("running" in name for name in changed)  # batch norm's statistics are frozen
    untrained, _ = fit(
        replace(SMALL, loss=loss), images, tmp_path / "untrained", replace(TRAINING, steps=1, learning_rate=0.0)
    )
    assert not torch.equal(trained.head.weight, untrained.head.weight)


def test_what_is_not_to_be_trained_stays(images, tmp_path):
    start = START.embedder().network.state_dict()
    trained, _ = fit(replace(SMALL, freeze_backbone=True), images, tmp_path / "frozen")
    assert all(torch.equal(value, start[name]) for name, value in trained.network.state_dict().items())
    trained, _ = fit(replace(SMALL, freeze_batch_norm=False), images, tmp_path / "statistics")
    assert not torch.equal(trained.network.state_dict()["bn1.running_mean"], start["bn1.running_mean"])


def test_a_head_on_frozen_features_separates_what_it_is_trained_on(images, tmp_path):
    training = replace(TRAINING, steps=60, batch_size=30, validate_every=60)
    _, state = fit(replace(SMALL, freeze_backbone=True, dim=32), images, tmp_path, training)
    assert np.mean(state["history"]["loss"][-5:]) < 0.7 * np.mean(state["history"]["loss"][:5])


def test_a_batch_is_so_many_images_of_a_class_and_follows_from_seed_and_step(images):
    rows = SMALL.batch(images.labels, 12, step=5, seed=1)
    _, counts = np.unique(images.labels[rows], return_counts=True)
    assert counts.tolist() == [3, 3, 3, 3] and len(set(rows)) == 12
    assert (rows == SMALL.batch(images.labels, 12, step=5, seed=1)).all()
    assert (rows != SMALL.batch(images.labels, 12, step=6, seed=1)).any()
    few = SMALL.batch(np.array([0, 0, 1, 1, 2, 2]), 6, step=0, seed=0)
    assert len(few) == 6  # a class of two gives three


def test_resumed_it_ends_bitwise_as_unbroken(images, tmp_path, monkeypatch):
    unbroken, _ = fit(replace(SMALL, loss="proxy_anchor"), images, tmp_path / "unbroken")

    class Killed(Exception):
        pass

    rate = Training.rate

    def killed_at_the_fourth(training, step):
        if step == 3:
            raise Killed
        return rate(training, step)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Training, "rate", killed_at_the_fourth)
        fit(replace(SMALL, loss="proxy_anchor"), images, tmp_path / "broken")
    resumed, _ = fit(replace(SMALL, loss="proxy_anchor"), images, tmp_path / "broken")
    assert all(torch.equal(resumed.state_dict()[n], value) for n, value in unbroken.state_dict().items())


def test_an_extractor_describes_as_the_embedder_that_was_saved(images, tmp_path):
    trained, _ = fit(SMALL, images, tmp_path)
    trained.save(tmp_path / WHOLE)
    extractor = replace(START, weights=str(tmp_path / WHOLE))
    some = [images.image(i) for i in range(4)]
    with torch.no_grad():
        expected = trained(trained.input(some))
    assert extractor.sizes == (16, 112)
    torch.testing.assert_close(extractor.describe(some).global_descriptor.float(), expected, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match=r"trained with image_size 32; set Extractor\.image_size"):
        _ = replace(extractor, image_size=64).sizes
    with pytest.raises(ValueError, match="There are no weights at"):
        _ = replace(extractor, weights=str(tmp_path / "none.safetensors")).sizes
    (tmp_path / WHOLE).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        _ = replace(extractor, weights=str(tmp_path / WHOLE)).sizes


def test_projected_local_descriptors_are_principal_components(images, tmp_path):
    embedder = Embedder.pretrained("tf_efficientnet_lite0", "bundled", 64, "avg")
    projected = with_locals(embedder, images, 3)
    with torch.no_grad():
        batch = embedder.input([images.image(i) for i in range(len(images))])
        cells = embedder.maps(batch)[0].flatten(2).mT.flatten(0, 1).numpy()
        ours = projected.maps(batch)[1].flatten(2).mT.flatten(0, 1).numpy()
    theirs = PCA(3, svd_solver="full").fit_transform(cells)
    np.testing.assert_allclose(abs(ours), abs(theirs), atol=2e-2 * abs(theirs).max())
    with pytest.raises(ValueError, match="has 1280 channels"):
        fit(replace(SMALL, local_dim=5000), images, tmp_path)


def test_images_are_described_by_the_embedder_that_has_not_seen_their_class(images, tmp_path):
    for number, name in enumerate((WHOLE, *FITTED_ON)):
        torch.manual_seed(number)
        Embedder(START.model, START.image_size, dim=8).save(tmp_path / name)
    found, made_by = describe_unseen(tmp_path, START, images, in_training=True)
    half = halves(images.labels)
    assert (made_by == 1 - half).all() and 0 < half.mean() < 1
    assert all(len(set(half[images.labels == label])) == 1 for label in images.labels)
    for number, name in enumerate(FITTED_ON):
        own = np.flatnonzero(made_by == number)
        alone = replace(START, weights=str(tmp_path / name)).extract(images)[own]
        for kind in ("global_descriptor", "local"):  # turned, not changed
            rows = [getattr(each, kind).float().flatten(0, -2) for each in (found[own], alone)]
            torch.testing.assert_close(*(each @ each.T for each in rows), atol=1e-2, rtol=0)
    found, made_by = describe_unseen(tmp_path, START, images, in_training=False)
    assert torch.equal(
        found.global_descriptor, replace(START, weights=str(tmp_path / WHOLE)).extract(images).global_descriptor
    )
    assert (made_by == 0).all()


def test_turning_undoes_a_rotation(images):
    torch.manual_seed(0)
    described = START.extract(images)
    global_matrix, local_rows = F.normalize(torch.randn(len(images), 6), dim=-1), torch.randn(len(images), 4, 5)
    straight = replace(described, global_descriptor=global_matrix, local=local_rows)
    turns = [torch.linalg.qr(torch.randn(n, n))[0] for n in (6, 5)]
    back = turned(replace(described, global_descriptor=global_matrix @ turns[0], local=local_rows @ turns[1]), straight)
    torch.testing.assert_close(back.global_descriptor, global_matrix, atol=1e-5, rtol=0)
    torch.testing.assert_close(back.local, local_rows, atol=1e-5, rtol=0)


COMMAND = [
    "Extractor.image_size = 32",
    "Extractor.local_stage = 3",
    "Data.benchmark = 'folder'",
    "Embedding.cross_fit = True",
    "Finetuning.dim = 16",
    "Training.steps = 2",
    "Training.batch_size = 8",
    "Training.validate_every = 1",
]


def command(main, gin, out, *lines):
    settings = [part for line in lines for part in ("--set", line)]
    return main(["--gin", gin, "--out", str(out), *settings])


@pytest.mark.slow
def test_from_images_to_a_re_ranked_table(root, tmp_path, capsys, monkeypatch):
    seen, whole_fit = {}, Finetuning.fit

    def watched(self, start, images, training, folder, seed):
        if folder.name == "fitted-on-half1" and not seen.get("killed"):
            seen["killed"] = True
            raise KeyboardInterrupt
        seen[folder.name] = set(images.labels)
        return whole_fit(self, start, images, training, folder, seed)

    monkeypatch.setattr(Finetuning, "fit", watched)
    path, out = f"folder.path = '{root}'", tmp_path / "embed"
    lines = [*QUICK, path, f"Experiment.embedder = '{out}'", "Model.global_token = False"]
    assert command(embed.main, "gin/embed/multi_similarity.gin", out, *COMMAND, path) == 130
    assert command(run.main, "gin/query_attention.gin", tmp_path / "run", *lines) == 2
    assert "is not a finished run of experiments.embed" in capsys.readouterr().err
    assert command(embed.main, "gin/embed/multi_similarity.gin", out, *COMMAND, path) == 0
    printed = capsys.readouterr().out
    assert "before" in printed and "trained" in printed
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["seconds"]) >= {"training embedder", "training fitted-on-half0", "training fitted-on-half1"}

    train = benchmarks.create("folder", path=str(root)).train
    _, made_by = describe_unseen(out, START, train, in_training=True)
    for number, name in enumerate(FITTED_ON):  # what describes an image was fitted on none of its class
        assert not set(train.labels[made_by == number]) & seen[name.removesuffix(".safetensors")]

    assert command(run.main, "gin/query_attention.gin", tmp_path / "run", *lines) == 0
    reranked = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert reranked["global"] == pytest.approx(metrics["trained"])
    assert command(embed.main, "gin/embed/multi_similarity.gin", out, *COMMAND, path) == 0
    assert "is finished" in capsys.readouterr().out
    Embedder(START.model, START.image_size, dim=16).save(out / WHOLE)  # other weights are another run
    assert command(run.main, "gin/query_attention.gin", tmp_path / "run", *lines) == 2
    assert "a run of another configuration" in capsys.readouterr().err
    sorted(root.rglob("*.png"))[0].touch()  # other images: nobody knows what the halves have seen of them
    assert command(run.main, "gin/query_attention.gin", tmp_path / "other", *lines) == 2
    assert "were trained on other images" in capsys.readouterr().err


def test_live_descriptors_are_the_extractors_and_have_gradients(images):
    embedder = START.embedder()
    table, rows = OnlineTable(embedder, START, images), torch.tensor([[3, 1], [3, 0]])
    found, stored = table[rows], START.extract(images)[rows]
    torch.testing.assert_close(found.global_descriptor, stored.global_descriptor.float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(found.local, stored.local.float(), atol=2e-3, rtol=0)
    torch.testing.assert_close(table.all().local, START.extract(images).local.float(), atol=2e-3, rtol=0)
    found.local[0, 0].sum().backward()
    assert float(embedder.network.conv_stem.weight.grad.abs().sum()) > 0


@pytest.mark.slow
def test_the_network_is_trained_with_the_re_ranker(root, tmp_path):
    lines = [*QUICK, f"folder.path = '{root}'"]
    for rate, parts in ((0.0, 1), (1.0, 2)):
        more = [f"Experiment.embedder_lr_scale = {rate}", f"Training.grad_accumulation_steps = {parts}"]
        assert command(run.main, "gin/query_attention.gin", tmp_path / str(rate), *lines, *more) == 0
    still, moved = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("0.0", "1.0"))
    assert still["global"] == moved["global"]  # the same shortlists
    trained = Embedder.load(tmp_path / "1.0" / WHOLE).network.state_dict()
    start = START.embedder().network.state_dict()
    assert not torch.equal(trained["conv_stem.weight"], start["conv_stem.weight"])
    assert torch.equal(trained["bn1.running_mean"], start["bn1.running_mean"])
    assert not (tmp_path / "0.0" / WHOLE).exists()


@pytest.mark.parametrize(
    ("module", "gin"),
    [
        pytest.param("run", "gin/mamba.gin", marks=pytest.mark.slow),
        pytest.param("embed", "gin/embed/head.gin", marks=pytest.mark.slow),
        pytest.param("extract", "gin/data/glyphs.gin", marks=pytest.mark.slow),
    ],
)
def test_files_of_data_mix_into_every_command(module, gin):
    """In a process of its own, where nothing has been imported but what the command itself needs."""
    command = [
        sys.executable,
        "-m",
        f"experiments.{module}",
        "--gin",
        gin,
        "--gin",
        "gin/data/posters.gin",
        "--dry-run",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and "Data.benchmark = 'posters'" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Finetuning.loss = 'proxy_ancor'", "did you mean 'proxy_anchor'"),
        ("Finetuning.pooling = 'agv'", "did you mean 'avg'"),
        ("Finetuning.min_crop_area = 0.0", "must be in (0, 1]"),
        ("Finetuning.images_per_class = 1", "at least 2"),
        ("Training.batch_size = 7", "set Training.batch_size or Finetuning.images_per_class"),
        ("Training.batch_size = 4", "two or more of the"),
        ("Training.grad_accumulation_steps = 2", "must be 1 here"),
        ("Data.benchmark = 'glyph'", "did you mean 'glyphs'"),
    ],
)
def test_wrong_settings_get_one_sentence(root, tmp_path, capsys, line, words):
    settings = [part for each in (*COMMAND, f"folder.path = '{root}'", line) for part in ("--set", each)]
    assert embed.main(["--gin", "gin/embed/proxy_anchor.gin", "--out", str(tmp_path / "run"), *settings]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
