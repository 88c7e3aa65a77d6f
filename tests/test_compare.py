"""One table from several runs: finished ones are not run again, a failing one is named."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from small import QUICK, write_glyphs

from experiments import compare
from experiments.configuration import same_run
from experiments.experiment import prepare
from locore.evaluation import interval
from locore.report import comparison


@pytest.fixture
def arguments(tmp_path, cache):
    lines = [*QUICK, f"folder.path = '{write_glyphs(tmp_path / 'images')}'"]
    files = []
    for name, backbone in (("good", "query_attention"), ("bad", "transformer")):
        path = tmp_path / f"{name}.gin"
        path.write_text(f"Experiment.backbone = '{backbone}'\n")
        files.append(str(path))
    settings = [part for line in lines for part in ("--set", line)]
    return [*files, "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), *settings]


def test_a_table_with_a_failure_and_no_second_run(arguments, tmp_path, monkeypatch, capsys):
    run, commands = compare._run, []

    def watched(command):
        commands.append(command)
        if "bad.gin" in command[command.index("--gin") + 1]:
            return run([sys.executable, "-c", "import sys; sys.exit('error: it broke')"])
        return run(command)

    monkeypatch.setattr(compare, "_run", watched)
    assert compare.main(arguments) == 1
    assert len(commands) == 2
    table = (tmp_path / "results" / "table.md").read_text()
    metrics = json.loads((tmp_path / "results" / "good-seed0.json").read_text())
    assert "| bad, seed 0 |" in table and "error: it broke" in table
    assert f"{metrics['reranked']['mAP@R']:.1f}" in table and "| oracle |" in table
    assert (tmp_path / "results" / "table.csv").read_text().startswith("protocol,,parameters,R@1")
    assert (tmp_path / "results" / "table.png").stat().st_size > 1000
    compare.main(arguments)
    assert len(commands) == 3  # only the failed one again
    compare.main([*arguments, "--set", "Training.steps = 7"])
    assert len(commands) == 5  # another configuration: both
    again = json.loads((tmp_path / "results" / "good-seed0.json").read_text())
    assert "Training.steps = 7" in again["config"]


def test_a_table_for_each_benchmark_with_what_a_list_costs(arguments, tmp_path):
    for name, queries in (("few", 9), ("many", 12)):
        (tmp_path / f"{name}.gin").write_text(f"folder.max_queries = {queries}\n")
    untrained = []
    for name in ("chamfer", "superglobal"):
        untrained.append(str(tmp_path / f"{name}.gin"))
        (tmp_path / f"{name}.gin").write_text(f"Experiment.method = '{name}'\nExperiment.ensemble = False\n")
    on = ["--on", *(str(tmp_path / f"{name}.gin") for name in ("few", "many"))]
    results = tmp_path / "results"
    rows = [arguments[0], *untrained, *arguments[2:]]
    assert compare.main([*rows, *on, "--costs", "--seeds", "0", "1"]) == 0
    for name, queries in (("few", 9), ("many", 12)):
        runs = sorted(path.stem for path in (results / name).glob("*-seed*.json"))
        assert runs == [
            "chamfer-seed0",
            "good-seed0",
            "good-seed1",
            "superglobal-seed0",
        ]  # what is not trained has no seed
        assert json.loads((results / name / "good-seed1.json").read_text())["queries"] == queries
        costs = json.loads((results / name / "costs.json").read_text())["rows"]
        assert all(cost["ms"] > 0 for cost in costs.values())
        assert costs["good"]["gflops"] > 0 and costs["chamfer"]["gflops"] is None
        described = json.loads((results / name / "chamfer-seed0.json").read_text())["config"]
        assert "Extractor.grid = 2" in described and "Extractor.local_stage = 3" in described
        assert costs["chamfer"]["stored"] == costs["good"]["stored"] == 4 * 1280 + 2 * 4 * (5 + 112)
        assert costs["superglobal"]["stored"] == 4 * 1280  # which reads no locals
        assert f"{costs['good']['stored']:,}" in (results / name / "table.md").read_text()
        with open(results / name / "table.csv", newline="") as file:
            table = {row[""]: row for row in csv.DictReader(file)}
        points = [(costs[row]["ms"], float(table[row]["mAP@R"].split()[0]), row) for row in costs]
        for ms, quality, row in points:  # to the digit that is shown
            beaten = any(m < ms and q > quality for m, q, _ in points)
            assert not (beaten and table[row]["front"])
        assert any(table[row]["front"] == "yes" for row in costs)
        assert (results / name / "differences.csv").read_text().startswith("protocol,first,second,R@1")
    assert (results / "pareto.png").stat().st_size > 1000


def test_what_cannot_be_measured_leaves_the_tables(arguments, tmp_path, monkeypatch, capsys):
    def broken(*_):
        raise ValueError("it broke")

    monkeypatch.setattr(compare, "side_by_side", broken)
    assert compare.main([arguments[0], *arguments[2:], "--costs"]) == 1
    assert "were not measured: it broke" in capsys.readouterr().err
    assert "| good |" in (tmp_path / "results" / "table.md").read_text()
    monkeypatch.setattr(compare, "_run", lambda _: "it broke")
    assert compare.main([arguments[1], *arguments[2:], "--costs"]) == 1
    assert "| bad, seed 0 |" in (tmp_path / "results" / "table.md").read_text()


def test_the_front_is_what_nothing_else_beats():
    random = np.random.default_rng(0)
    points = [(float(ms), float(quality), str(n)) for n, (ms, quality) in enumerate(random.integers(0, 9, (60, 2)))]
    front = comparison.pareto_front(points)
    for ms, quality, name in points:
        beaten = any((m <= ms and q >= quality) and (m, q) != (ms, quality) for m, q, _ in points)
        assert ((ms, quality) in [p[:2] for p in front]) != beaten, name
    assert len({p[:2] for p in front}) == len(front)


def test_every_machine_is_named_with_its_rows():
    protocols = {"all": {"queries": 3}}
    run = {"protocols": protocols, "candidates": 9, "benchmark": "b", "machine": "a CPU", "commit": "c"}
    rows = {"one": [run, run], "two": [run]}
    assert "Machine: a CPU. Commits: c." in comparison.made(rows, "command")
    rows["two"] = [run, {**run, "machine": "a GPU"}]
    assert "Machine: a CPU (one, two); a GPU (two). Commits: c." in comparison.made(rows, "command")


def test_seconds_of_different_machines_are_not_averaged():
    protocols = {"all": {"shown": ["R@1"], **{key: {"R@1": 1.0} for key in ("global", "reranked", "oracle")}}}
    run = {"protocols": protocols, "parameters": 0, "latency_ms": 1.0, "peak_memory_mb": 1}
    slow, fast = ({**run, "machine": m, "seconds": {"training": s}} for m, s in (("a CPU", 1340.0), ("a GPU", 61.0)))
    slower = {**slow, "seconds": {"training": 1360.0}}
    _, one, other, _ = comparison.rows({"one": [slow, slower], "other": [slow, fast]}, {}, "all")
    assert one["training s"] == "1350 ± 14" and other["training s"] == "1340 / 61"


def test_published_numbers_stand_beside_their_rows(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text('table,row,"theirs, %"\nresults,global,12.3\nresults,one,45.6\nother,one,78.9\n')
    published = comparison.read_published(path, "results")
    protocols = {"all": {"shown": ["R@1"], **{key: {"R@1": 1.0} for key in ("global", "reranked", "oracle")}}}
    run = {
        "protocols": protocols,
        "parameters": 0,
        "seconds": {},
        "latency_ms": 1.0,
        "peak_memory_mb": 1,
        "machine": "m",
    }
    table = comparison.rows({"one": [run], "two": [run]}, {}, "all", published=published)
    assert [(row[""], row["theirs, %"]) for row in table] == [
        ("global", "12.3"),
        ("one", "45.6"),
        ("two", ""),
        ("oracle", ""),
    ]
    path.write_text("row\none\n")
    with pytest.raises(ValueError, match="columns table and row"):
        comparison.read_published(path, "results")


def test_a_table_of_what_is_finished_runs_nothing(arguments, tmp_path, monkeypatch, capsys):
    assert compare.main([arguments[0], *arguments[2:]]) == 0
    monkeypatch.setattr(compare, "_run", lambda _: pytest.fail("something was run"))
    assert compare.main([*arguments, "--seeds", "0", "1", "--finished"]) == 0
    table = (tmp_path / "results" / "table.md").read_text()
    assert "| good |" in table and "bad" not in table.split("Command")[0] and "±" not in table.split("Re-ranked")[0]
    assert "good, seed 1: left out" in capsys.readouterr().err
    assert compare.main([arguments[1], *arguments[2:], "--finished"]) == 2
    assert "has no result of these rows" in capsys.readouterr().err


def test_metrics_of_queries_by_an_older_version_or_cut_short_are_not_known(arguments, tmp_path, monkeypatch):
    assert compare.main([arguments[0], *arguments[2:]]) == 0
    path = tmp_path / "results" / "good-seed0.csv"
    text = path.read_text()
    monkeypatch.setattr(compare, "_run", lambda _: "run again")
    for other in (text.replace("protocol,query", "query", 1), text[: len(text) // 2], ""):
        path.write_text(other)
        assert compare.main([arguments[0], *arguments[2:]]) == 1


def test_a_run_of_before_a_setting_came_is_the_same_where_it_is_at_its_default():
    (_, config), (_, other) = (prepare(["gin/mamba.gin"], lines, seed=0) for lines in ([], ["Training.average = 0.5"]))
    line = re.compile(r"^Training\.average = .*\n", re.MULTILINE)
    assert len(line.findall(config)) == 1
    older = line.sub("", config)
    assert same_run(config, config) and same_run(config, older)
    assert not same_run(other, older) and not same_run(older, config)
    assert not same_run(config, older.replace("# seed 0", "# seed 1"))


def test_rows_that_cannot_be_compared_end_it_before_the_first_run(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_run", lambda _: pytest.fail("something was run"))
    (tmp_path / "bad.gin").write_text("Extractor.image_size = 48\n")
    lines = [arguments.index(part) for part in arguments if part == "Extractor.image_size = 32"]
    del arguments[lines[0] - 1 : lines[0] + 1]
    assert compare.main(arguments) == 2
    assert "'bad' and 'good' differ in Extractor.image_size: 48 and 96" in capsys.readouterr().err


def test_two_backbones_are_compared_on_the_same_queries():
    shown, groups = ["R@1"], ["a", "a", "b", "b", "c", "c"]

    def run(*values):
        return [{"protocol": "all", "class": g, "reranked R@1": str(v)} for g, v in zip(groups, values, strict=True)]

    per_query = {"one": [run(1, 1, 1, 1, 0, 0), run(1, 1, 1, 1, 1, 1)], "other": [run(0, 0, 1, 1, 0, 0)]}
    pairs = comparison.differences(per_query, shown, "all")
    difference = np.array([1, 1, 0, 0, 0.5, 0.5])
    low, high = interval(100 * difference, np.array(groups))
    assert pairs == [{"first": "one", "second": "other", "R@1": f"+50.0 [{low:+.1f}, {high:+.1f}]"}]
    assert f"| other | {pairs[0]['R@1']} |" in comparison.of_the_first(pairs, "elsewhere")
    assert comparison.of_the_first(comparison.differences({"one": per_query["one"]}, shown, "all"), "elsewhere") == ""
    third = comparison.differences({**per_query, "third": per_query["other"]}, shown, "all")
    assert [(p["first"], p["second"]) for p in third] == [("one", "other"), ("one", "third"), ("other", "third")]
    assert "other less" not in comparison.of_the_first(third, "elsewhere")


def test_a_wrong_name_ends_it_before_the_first_run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_run", lambda _: pytest.fail("something was run"))
    assert compare.main([*arguments, "--set", "Experiment.size = 'tinny'"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err


def test_a_table_in_latex():
    table = [{"": "global", "R@1": "60.0"}, {"": "query_attention", "R@1": "61.0 ± 0.5", "share": "50%"}]
    expected = [
        r"\begin{tabular}{lrr}",
        r"\hline",
        r" & R@1 & share \\",
        r"\hline",
        r"global & 60.0 &  \\",
        r"query\_attention & 61.0 $\pm$ 0.5 & 50\% \\",
        r"\hline",
        r"\end{tabular}",
    ]
    assert comparison.latex(table).split("\n") == expected
