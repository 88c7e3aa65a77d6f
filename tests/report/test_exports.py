"""TREC files, measured by ir-measures."""

import json

import ir_measures
import pytest
from ir_measures import P, Success
from small_inputs import QUICK, write_glyphs

from experiments.run import main
from locore.report import exports

WORLD = {"walls": 12, "views": 12, "queries": 16, "distractors": 10}


def run(out, *lines):
    settings = [
        *QUICK,
        "Outputs.trec = True",
        "Outputs.json = True",
        "Model.method = 'chamfer'",
        "Reranking.ensemble = False",
        *lines,
    ]
    arguments = [part for line in settings if "query_attention" not in line for part in ("--set", line)]
    assert main(["--gin", "gin/peers/chamfer.gin", *arguments, "--out", str(out)]) == 0
    return json.loads((out / "metrics.json").read_text())


def measured(folder, protocol, method, measures):
    qrels = ir_measures.read_trec_qrels(str(folder / "trec" / f"{protocol}.qrels"))
    found = ir_measures.read_trec_run(str(folder / "trec" / f"{protocol}.{method}.run"))
    return {str(name): 100 * value for name, value in ir_measures.calc_aggregate(measures, qrels, found).items()}


def test_names_stay_apart():
    assert len({exports._word(name) for name in ("a b", "a_b", "a%20b", "a  b", "a\tb")}) == 5


@pytest.mark.parametrize("method", ["global", "reranked"])
def test_recall_is_what_their_tools_call_success(tmp_path, method):
    root = write_glyphs(tmp_path / "images")
    metrics = run(tmp_path / "run", f"folder.path = '{root}'")
    (protocol,) = metrics["protocols"]
    theirs = measured(tmp_path / "run", protocol, method, [Success @ 1, Success @ 10])
    assert theirs["Success@1"] == pytest.approx(metrics[method]["R@1"])
    assert theirs["Success@10"] == pytest.approx(metrics[method]["R@10"])
    found = json.loads((tmp_path / "run" / "json" / f"{method}.json").read_text())  # names are "class/image.png"
    first = [query.split("/")[0] == max(values, key=values.get).split("/")[0] for query, values in found.items()]
    assert 100 * sum(first) / len(first) == pytest.approx(metrics[method]["R@1"])
    assert all(len(set(values.values())) == len(values) for values in found.values())


def test_junk_is_left_out_as_the_protocols_of_landmarks_do(tmp_path):
    world = [f"posters.{name} = {value}" for name, value in WORLD.items()]
    metrics = run(tmp_path / "run", "Data.benchmark = 'posters'", *world)
    for protocol, own in metrics["protocols"].items():
        for method in ("global", "reranked"):
            theirs = measured(tmp_path / "run", protocol.replace("*", "-star"), method, [P @ 1])
            assert theirs["P@1"] == pytest.approx(own[method]["mP@1"])
