"""The library does what the commands do: the same numbers in three lines of Python."""

import csv
import json

import numpy as np
import pytest
import torch
from small_inputs import QUICK, write_glyphs

import locore
from experiments._config import read_experiment
from experiments.run import main
from locore.pipeline import outputs
from locore.pipeline.settings import RESIDUAL_HEAD

EXTRACTOR = {"image_size": 32, "local_stage": 3, "grid_size": 2}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("photos"))


def run(gin_file, photos, out, *more):
    lines = [*QUICK, f"folder.path = '{photos}'", "Reranking.ensemble = False", *more]
    if "peers" in gin_file:
        lines = [line for line in lines if "query_attention" not in line]
    assert main(["--gin", gin_file, *(p for line in lines for p in ("--set", line)), "--out", str(out)]) == 0
    return json.loads((out / "metrics.json").read_text())


def test_evaluate_measures_what_a_run_measures(photos, tmp_path):
    metrics = run("gin/peers/chamfer.gin", photos, tmp_path / "run")
    benchmark = locore.benchmarks.create("folder", path=str(photos))
    chamfer = locore.rerankers.create("chamfer")
    found = locore.evaluate(chamfer, benchmark, locore.Extractor(**EXTRACTOR), candidates=8)["all"]
    for row in ("global", "reranked", "oracle", "chance", "difference", "better", "worse"):
        assert found[row] == metrics[row]
    with open(tmp_path / "run" / "queries.csv", newline="") as file:
        queries = list(csv.DictReader(file))
    for name, worse in metrics["worse"]["reranked"].items():
        gains = [float(query[f"reranked {name}"]) - float(query[f"global {name}"]) for query in queries]
        assert worse == sum(gain < -1e-6 for gain in gains)
        assert metrics["better"]["reranked"][name] == sum(gain > 1e-6 for gain in gains)
    printed = outputs.table(metrics).splitlines()
    assert any(line.split() == ["worse", *map(str, metrics["worse"]["reranked"].values())] for line in printed)


def test_a_gate_leaves_lists_as_they_were_searched(photos, tmp_path):
    chosen = run("gin/peers/chamfer.gin", photos, tmp_path / "chosen", "Reranking.gate = 'chosen'")
    assert chosen["gated"]["mAP@R"] >= chosen["global"]["mAP@R"] and 0 <= chosen["gate_opens"] <= 100
    with np.load(tmp_path / "chosen" / "rankings.npz") as file:
        first = file["all/similarities"][:, 0].astype(float)
    metrics = run("gin/peers/chamfer.gin", photos, tmp_path / "given", f"Reranking.gate = {np.median(first)}")
    opens = first < metrics["gate"]
    assert metrics["gate_opens"] == pytest.approx(100 * opens.mean(), abs=3)  # they are stored in half precision
    assert 0 < metrics["gate_opens"] < 100
    with open(tmp_path / "given" / "queries.csv", newline="") as file:
        queries = list(csv.DictReader(file))
    parts = zip(opens, queries, strict=True)
    kept = [float(query["reranked mAP@R" if opened else "global mAP@R"]) for opened, query in parts]
    assert metrics["gated"]["mAP@R"] == pytest.approx(100 * np.mean(kept), abs=1)
    assert "of the lists are re-ranked" in outputs.table(metrics)


def test_train_reranker_trains_what_a_run_trains(photos, tmp_path):
    run("gin/query_attention.gin", photos, tmp_path / "run", "Training.learning_rate = 0.001")
    benchmark = locore.benchmarks.create("folder", path=str(photos))
    training = locore.Training(steps=6, batch_size=4, validate_every=2, warmup_steps=2, learning_rate=0.001)
    settings = {"depth": 1, "width": 32, "heads": 2, "expansion": 5.75}
    model = locore.train_reranker(
        "query_attention", benchmark.train, locore.Extractor(**EXTRACTOR), tmp_path / "own", 8, training,
        settings=settings,
    )  # fmt: skip
    theirs = locore.load(tmp_path / "run").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in model.state_dict().items())
    again = locore.load(tmp_path / "own").state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in again.items())


def test_evaluate_refuses_a_re_ranker_of_other_descriptors(photos):
    model = locore.ListwiseReranker("query_attention", local_dim=7, global_dim=1280, max_positions=99)
    benchmark = locore.benchmarks.create("folder", path=str(photos))
    with pytest.raises(ValueError, match="reads descriptors of local_dim 7, these have 112"):
        locore.evaluate(model, benchmark, locore.Extractor(**EXTRACTOR), candidates=8)


def test_an_experiment_is_plain_python(photos, tmp_path):
    experiment = locore.Experiment(
        model=locore.Model(method="chamfer"),
        reranking=locore.Reranking(candidates=8, ensemble=False),
        data=locore.Data("folder", {"path": str(photos)}),
        extractor=locore.Extractor(**EXTRACTOR),
    )
    metrics = locore.run_experiment(experiment, tmp_path / "run", 0, "chamfer")
    assert metrics["reranked"] == run("gin/peers/chamfer.gin", photos, tmp_path / "command")["reranked"]
    assert (tmp_path / "run" / "lists.png").stat().st_size > 0


def test_a_metric_that_decides_and_is_not_measured_is_reported(photos, tmp_path, capsys):
    lines = [*QUICK, f"folder.path = '{photos}'", "Training.monitor = 'mAP@r'"]
    arguments = ["--gin", "gin/query_attention.gin", *(p for line in lines for p in ("--set", line))]
    assert main([*arguments, "--out", str(tmp_path / "wrong")]) == 2
    assert "did you mean 'mAP@R'" in capsys.readouterr().err


def test_our_head_is_the_same_in_the_library_and_in_gin():
    experiment, _ = read_experiment(["gin/mamba.gin"], [], 0)
    assert {name: getattr(experiment.model, name) for name in RESIDUAL_HEAD} == RESIDUAL_HEAD
    assert experiment.sampling == locore.Sampling(hard_negatives=True)
    plain, _ = read_experiment(["gin/mamba.gin", "gin/head/plain.gin"], [], 0)
    assert {name: getattr(plain.model, name) for name in RESIDUAL_HEAD} == {
        name: getattr(locore.Model(), name) for name in RESIDUAL_HEAD
    }
    assert plain.sampling == locore.Sampling()
