"""Published ground truth, someone's descriptor files and the published checkpoint, in one command."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import locore
from experiments import extract
from experiments.run import main
from locore.datasets import benchmarks
from locore.descriptors import ames_files
from locore.descriptors.ames_files import Locals, Stored
from locore.descriptors.table import Rows
from locore.evaluation.search import Search, rerank_protocols
from locore.metrics.retrieval import relevance
from locore.metrics.suites import Revisited
from locore.reranking import Ensemble, Ranking, Shortlist, Windows
from locore.reranking.ensemble import ALPHAS, TEMPERATURES
from locore.reranking.reranker import rerankers
from locore.retrieval import Neighbours, search

GOLDEN = Path(__file__).parents[1] / "golden"
TRUTH = GOLDEN / "revisitop"
FILES = ("query_global", "query_local", "gallery_global", "gallery_local")
LOCALS, WIDTH, GLOBAL = 4, 24, 40  # as the golden checkpoint has them
PUBLISHED = {"heads": 4, "window": 16, "score": "last"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder, random = tmp_path_factory.mktemp("roxford5k"), np.random.default_rng(0)
    benchmark = benchmarks.create("roxford5k", root=str(TRUTH))
    for name, images in (("query", benchmark.queries), ("gallery", benchmark.gallery)):
        rows = random.normal(size=(len(images), GLOBAL)).astype(np.float32)
        ames_files.write_globals(folder / f"{name}_global", rows / np.linalg.norm(rows, axis=1, keepdims=True))
        features = random.normal(size=(len(images), LOCALS + 2, 5 + WIDTH)).astype(np.float16)
        features[..., 2:4] = random.integers(0, 2, (len(images), LOCALS + 2, 2))
        ames_files.write_locals(folder / f"{name}_local", features)
    shutil.copy(GOLDEN / "locore_landmark.weights.safetensors", folder / "model.safetensors")
    return folder


def run(folder, out, *lines):
    settings = [
        "Data.benchmark = 'roxford5k'",
        f"roxford5k.root = '{TRUTH}'",
        *(f"Files.{name} = '{folder / name}'" for name in FILES),
        f"Files.locals_per_image = {LOCALS}",
        "Experiment.files = @Files()",
        f"Model.checkpoint = '{folder}'",
        f"Model.checkpoint_options = {PUBLISHED}",
        "Reranking.candidates = 30",
        "Reranking.window = 20",
        "Reranking.alpha = 0.5",
        "Reranking.temperature = 0.1",
        *lines,
    ]
    arguments = [part for line in settings for part in ("--set", line)]
    return main(["--gin", "gin/longformer.gin", "--out", str(out), *arguments])


@pytest.mark.parametrize("way", [pytest.param("end-to-start", marks=pytest.mark.slow), "start-to-end-and-back"])
def test_every_protocol_is_what_the_library_gives(folder, tmp_path, way):
    assert run(folder, tmp_path / "run", f"Reranking.window_order = '{way}'") == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    benchmark = benchmarks.create("roxford5k", root=str(TRUTH))
    queries, gallery = (
        Stored(
            ames_files.read_globals(folder / f"{name}_global", len(images)),
            Locals(folder / f"{name}_local", len(images), LOCALS),
        )
        for name, images in (("query", benchmark.queries), ("gallery", benchmark.gallery))
    )
    whole = np.argsort(-(queries.global_matrix @ gallery.global_matrix.T), axis=1, kind="stable")
    model = Windows(locore.load(folder, **PUBLISHED), 20, 10, way, Ensemble(0.5, 0.1))
    assert list(metrics["protocols"]) == ["medium", "hard", "hard*", "easy"]
    for name, answers in benchmark.protocols.items():
        measured = metrics["protocols"][name]
        asked = [row for row, right in enumerate(answers.positive) if len(right)]
        right, junk = (relevance(whole[asked], [x[row] for row in asked]) for x in (answers.positive, answers.junk))
        alone = Revisited()(right, junk, np.array([len(answers.positive[row]) for row in asked]))
        assert measured["global"]["mAP"] == pytest.approx(100 * alone["mAP"].mean(), abs=1e-3)
        search = Search.build(benchmark, queries, gallery, 30, name)
        order = search.rerank(model, 30, 7, torch.device("cpu")).order
        assert measured["ensemble"]["mAP"] == pytest.approx(100 * search.metrics(order)["mAP"].mean(), abs=1e-3)


def test_an_ensemble_is_chosen_on_gldv2s_public_part(folder, tmp_path, capsys):
    random, asked, images = np.random.default_rng(0), 30, 60
    root = tmp_path / "gldv2"
    root.mkdir()
    names = [f"a{number:05}" for number in range(images)]
    (root / "index.csv").write_text("\n".join(["id", *names]) + "\n")
    rows = [
        f"q{number:05},{' '.join(random.choice(names, 6, replace=False))},{'Public' if number < 20 else 'Private'}"
        for number in range(asked)
    ]
    (root / "retrieval_solution_v2.1.csv").write_text("\n".join(["id,images,Usage", *rows]) + "\n")
    for name, count in (("query", asked), ("gallery", images)):
        global_matrix = random.normal(size=(count, GLOBAL)).astype(np.float32)
        ames_files.write_globals(
            root / f"{name}_global", global_matrix / np.linalg.norm(global_matrix, axis=1, keepdims=True)
        )
        features = random.normal(size=(count, LOCALS, 5 + WIDTH)).astype(np.float16)
        features[..., 2:4] = 0
        ames_files.write_locals(root / f"{name}_local", features)
    lines = [
        "Data.benchmark = 'gldv2'",
        f"gldv2.root = '{root}'",
        *(f"Files.{name} = '{root / name}'" for name in FILES),
        "Reranking.alpha = None",
        "Reranking.temperature = None",
    ]
    assert run(folder, tmp_path / "public", *lines) == 0
    metrics = json.loads((tmp_path / "public" / "metrics.json").read_text())
    assert f"Reranking.alpha = {metrics['alpha']}" in capsys.readouterr().err

    benchmark = benchmarks.create("gldv2", root=str(root))
    queries = Stored(ames_files.read_globals(root / "query_global", asked), Locals(root / "query_local", asked, LOCALS))
    gallery = Stored(
        ames_files.read_globals(root / "gallery_global", images), Locals(root / "gallery_local", images, LOCALS)
    )
    public = Rows(queries, torch.arange(20))
    searched = Search.build(benchmark, public, gallery, 30)
    found = searched.rerank(locore.load(folder, **PUBLISHED), 20, 7, torch.device("cpu"))

    def quality(alpha, temperature):
        return searched.metrics(found.ensemble(Ensemble(alpha, temperature)))["mAP@100"].mean()

    best = max(quality(alpha, temperature) for alpha in ALPHAS for temperature in TEMPERATURES)
    assert quality(metrics["alpha"], metrics["temperature"]) == pytest.approx(best)
    assert best > quality(1.0, 1.0)

    assert run(folder, tmp_path / "private", *lines, "gldv2.part = 'private'") == 2
    assert "never on test queries" in capsys.readouterr().err


def test_lists_that_protocols_share_are_re_ranked_once(folder):
    benchmark = benchmarks.create("roxford5k", root=str(TRUTH))
    torch.manual_seed(0)
    sets = benchmark.queries, benchmark.gallery
    queries, gallery = (Shortlist.random(1, len(images), 2, 8, 8).candidates[0] for images in sets)
    searches = {name: Search.build(benchmark, queries, gallery, 300, name) for name in benchmark.protocols}
    lists = []

    def rerank(search):
        lists.append(len(search.rows))
        return search.rerank(Reversing(), 300, 16, torch.device("cpu"))

    together = rerank_protocols(searches, 300, rerank)
    own = {
        (row, tuple(n))
        for s in searches.values()
        for row, n in zip(s.rows, s.neighbours.first(300).indices, strict=True)
    }
    assert lists == [len(own)] and 70 < len(own) < sum(len(s.rows) for s in searches.values())
    for name, searched in searches.items():
        alone = searched.rerank(Reversing(), 300, 16, torch.device("cpu"))
        assert torch.equal(together[name].order, alone.order)
        torch.testing.assert_close(together[name].scores, alone.scores)
        torch.testing.assert_close(together[name].similarities, alone.similarities)


class Reversing:
    """Scores by what is in the lists, so that a list that is mixed up with another shows."""

    def rerank(self, shortlist):
        return Ranking.by(-shortlist.similarities + shortlist.candidates.local.sum((-1, -2)))


@pytest.mark.parametrize("benchmark", ["roxford5k", "rparis6k"])
@pytest.mark.parametrize("descriptors", ["sg_cvnet", "sg_dinov2", "dinov2_dinov2"])
@pytest.mark.parametrize(
    ("more", "tokens"), [([], 5050), (["million"], 5050), (["l100k50"], 5100), (["l25k200"], 5025)]
)
def test_every_row_of_tables_b_and_c_is_a_few_files(folder, benchmark, descriptors, more, tokens, capsys):
    files = [part for name in (benchmark, descriptors, *more) for part in ("--gin", f"gin/paper/landmarks/{name}.gin")]
    lines = [f"Model.checkpoint = '{folder}'", "Model.checkpoint_options = {'heads': 4, 'window': 16}"]
    assert main([*files, "--dry-run", *(part for line in lines for part in ("--set", line))]) == 0
    printed = capsys.readouterr().out
    assert f"= {tokens} tokens" in printed and "Reranking.candidates = 400" in printed
    assert f"Data.benchmark = '{benchmark}'" in printed and f"Files.root = 'data/{benchmark}'" in printed


def test_shortlists_of_other_descriptors_are_read(folder, tmp_path, capsys):
    benchmark = benchmarks.create("roxford5k", root=str(TRUTH))
    images = len(benchmark.gallery)
    rows = [ames_files.read_globals(folder / f"{n}_global", k) for n, k in (("query", 70), ("gallery", images))]
    found = search(*rows, images)
    table = np.stack([found.similarities, found.indices.astype(np.float32)])
    (tmp_path / "nn_own.pkl").write_bytes(pickle.dumps(table))
    alone = "Reranking.ensemble = False"  # half of the time
    assert run(folder, tmp_path / "searched", alone) == 0
    assert run(folder, tmp_path / "read", alone, f"Files.shortlists = '{tmp_path / 'nn_own.pkl'}'") == 0
    searched, read = (
        json.loads((tmp_path / n / "metrics.json").read_text())["protocols"] for n in ("searched", "read")
    )
    assert searched == read and "in another order" not in capsys.readouterr().err
    turned = np.stack([table[0], np.roll(table[1], 40, axis=1)])  # by descriptors of which nobody else knows
    (tmp_path / "nn_other.pkl").write_bytes(pickle.dumps(turned))
    assert run(folder, tmp_path / "other", alone, f"Files.shortlists = '{tmp_path / 'nn_other.pkl'}'") == 0
    assert "one of the files has its images in another order" in " ".join(capsys.readouterr().err.split())
    other = json.loads((tmp_path / "other" / "metrics.json").read_text())["protocols"]
    assert other["medium"]["global"] != searched["medium"]["global"]
    for wrong in (table[:, :, ::-1], np.stack([2 - 2 * table[0], table[1]])):  # worst first, and distances
        (tmp_path / "nn_wrong.pkl").write_bytes(pickle.dumps(np.ascontiguousarray(wrong)))
        assert run(folder, tmp_path / "wrong", f"Files.shortlists = '{tmp_path / 'nn_wrong.pkl'}'") == 2
        assert "similarities that rise along its lists" in capsys.readouterr().err
    (tmp_path / "nn_40.pkl").write_bytes(pickle.dumps(table[:, :, :40]))
    assert run(folder, tmp_path / "40", alone, f"Files.shortlists = '{tmp_path / 'nn_40.pkl'}'") == 0
    said = " ".join(capsys.readouterr().err.split())
    assert said.count(f"The shortlists have 40 images and mAP needs {images}: right images that are not listed") == 1
    (tmp_path / "nn_short.pkl").write_bytes(pickle.dumps(table[:, :, :20]))
    assert run(folder, tmp_path / "short", f"Files.shortlists = '{tmp_path / 'nn_short.pkl'}'") == 2
    assert "have 20 candidates, but 30" in capsys.readouterr().err


def test_re_ranked_lists_are_the_shortlists_of_another_run(folder, tmp_path, capsys):
    first = ["Model.method = 'superglobal'", "Model.checkpoint = None", "Reranking.window = None"]
    lines = [*first, "Reranking.ensemble = False", "Outputs.neighbours = 100"]
    assert run(folder, tmp_path / "first", *lines) == 0
    images = len(benchmarks.create("roxford5k", root=str(TRUTH)).gallery)
    queries, gallery = (
        torch.from_numpy(ames_files.read_globals(folder / f"{n}_global", k))
        for n, k in (("query", 70), ("gallery", images))
    )
    nearest = (queries @ gallery.T).argsort(dim=1, descending=True)[:, :100]
    lists = Shortlist.random(70, 30, 1, 2, GLOBAL)
    listed = gallery[nearest[:, :30]]
    lists = replace(
        lists,
        query=replace(lists.query, global_descriptor=queries),
        candidates=replace(lists.candidates, global_descriptor=listed),
    )
    order = rerankers.create("superglobal").rerank(lists).order
    wanted = torch.cat([nearest[:, :30].gather(1, order), nearest[:, 30:]], dim=1)
    path = tmp_path / "first" / "nn_reranked.pkl"
    found = ames_files.read_neighbours(path, 70, images)
    np.testing.assert_array_equal(found.indices, wanted)
    np.testing.assert_allclose(found.similarities, (queries @ gallery.T).gather(1, wanted), atol=1e-6)
    more = [f"Files.shortlists = '{path}'"]
    assert run(folder, tmp_path / "second", *more) == 0
    # The second starts from what the first ended with, wherever nothing on the list is junk.
    behind = benchmarks.create("roxford5k", root=str(TRUTH)).protocols["medium"].demoted
    with np.load(tmp_path / "second" / "rankings.npz") as lists_:
        rows, began = lists_["medium/rows"], lists_["medium/indices"]
    clean = np.array([not np.isin(wanted[row], behind[row]).any() for row in rows])
    assert clean.sum() > 10
    np.testing.assert_array_equal(began[clean], wanted[rows[clean], :30])
    assert run(folder, tmp_path / "less", *lines, "Outputs.neighbours = 20") == 2
    assert "fewer than the 30 candidates" in capsys.readouterr().err


def test_distractors_have_files_of_their_own_or_follow_in_the_gallerys(folder, tmp_path, capsys):
    count, random = 300, np.random.default_rng(1)
    (tmp_path / "revisitop1m.txt").write_text("\n".join(f"{n}.jpg" for n in range(count)))
    more = {
        "global": random.normal(size=(count, GLOBAL)).astype(np.float32),
        "local": random.normal(size=(count, LOCALS + 2, 5 + WIDTH)).astype(np.float16),
    }
    more["local"][..., 2:4] = 0
    ames_files.write_globals(tmp_path / "distractor_global", more["global"])
    ames_files.write_locals(tmp_path / "distractor_local", more["local"])
    images = ames_files.count_images(folder / "gallery_local")
    one_file = Locals(folder / "gallery_local", images)[np.arange(images)]
    ames_files.write_locals(tmp_path / "gallery_local", np.concatenate([one_file, more["local"]]))
    known = ames_files.read_globals(folder / "gallery_global", images)
    ames_files.write_globals(tmp_path / "gallery_global", np.concatenate([known, more["global"]]))
    within = [f"roxford5k.distractors = '{tmp_path}'"]
    apart = [f"Files.distractor_{kind} = '{tmp_path / f'distractor_{kind}'}'" for kind in more]
    together = [f"Files.gallery_{kind} = '{tmp_path / f'gallery_{kind}'}'" for kind in more]
    assert run(folder, tmp_path / "apart", *within, *apart) == 0
    assert run(folder, tmp_path / "together", *within, *together) == 0
    found = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("apart", "together")]
    assert found[0]["protocols"] == found[1]["protocols"] and found[0]["benchmark"] == "roxford5k+1m"
    assert run(folder, tmp_path / "less", *within) == 2  # and without their descriptors it says so
    queries = ames_files.count_images(folder / "query_local")
    for first, status in ((0, 2), (images, 0)):  # lists without a distractor, and with one on each
        indices = np.tile(np.append(np.arange(40), first + np.arange(1) + 40), (queries, 1))
        listed = Neighbours(indices, np.zeros(indices.shape, dtype=np.float32), np.zeros(indices.shape, dtype=bool))
        ames_files.write_neighbours(tmp_path / "nn.pkl", listed)
        lists = f"Files.shortlists = '{tmp_path / 'nn.pkl'}'"
        assert run(folder, tmp_path / f"listed{first}", *within, *apart, lists) == status
        assert ("has none of the distractors" in capsys.readouterr().err) == (status == 2)


@pytest.mark.slow
def test_a_large_gallery_is_rehearsed(folder, tmp_path, capsys):
    data, few = tmp_path / "data", ["Reranking.candidates = 12", "Reranking.window = 8", "Files.locals_per_image = 4"]
    assert extract.main(["--rehearse", str(TRUTH), "--distractors", "30", "--out", str(data)]) == 0
    names = ("roxford5k.root", "roxford5k.distractors", "Files.root", "Model.checkpoint")
    settings = [*few, *(f"{name} = '{data}'" for name in names)]
    arguments = ["--gin", "gin/paper/landmarks/rehearsal.gin", "--out", str(tmp_path / "run")]
    assert main([*arguments, *(part for line in settings for part in ("--set", line))]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["benchmark"] == "roxford5k+1m" and metrics["parameters"] == sum(
        p.numel() for p in locore.load(data).parameters()
    )
    assert metrics["protocols"]["medium"]["global"]["mAP"] < 5  # which is chance
    found = Locals(data / "distractor_local.hdf5", 30)[np.arange(30)].astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(found[..., 5:], axis=-1).mean(), 1, atol=0.01)
    assert extract.main(["--rehearse", str(tmp_path), "--distractors", "30", "--out", str(data)]) == 2
    assert "gnd_roxford5k.pkl" in capsys.readouterr().err
    kept = (folder / "model.safetensors").read_bytes()
    for more, words in (
        (["--out", str(folder)], "has files that this command"),
        (["--distractors", "9" * 12], "are free"),
    ):
        arguments = ["--rehearse", str(TRUTH), "--distractors", "3", "--out", str(tmp_path / "new"), *more]
        assert extract.main(arguments) == 2
        assert words in capsys.readouterr().err
    assert (folder / "model.safetensors").read_bytes() == kept


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (["Files.distractor_global = 'x'"], "go together"),
        (
            [
                "Files.distractor_global = 'query_global'",
                "Files.distractor_local = 'gallery_local'",
                "Files.root = '{folder}'",
            ],
            "own option",
        ),
        (["Model.checkpoint = None", "Files.train_local = 'x'"], "go together"),
        (["Reranking.alpha = None", "Reranking.temperature = None"], "never on test queries"),
        (["Reranking.alpha = None"], "go together"),
        (["Model.checkpoint = None"], "give Files.train_global"),
        (["Model.checkpoint = 'no'"], "There is no model at 'no"),
        (["Files.gallery_local = 'no'"], "There are no local descriptors at 'no'"),
        (["Files.locals_per_image = 9"], "has 6 descriptors an image, but 9"),
        (["Experiment.files = None"], "unpack the images there"),
        (["Experiment.files = None", "Model.checkpoint = None"], "has no training images"),
    ],
)
def test_what_cannot_be_done_is_reported(folder, tmp_path, capsys, lines, words):
    assert run(folder, tmp_path / "run", *(line.format(folder=folder) for line in lines)) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]
