"""One table from several runs: finished ones are not run again, a failing one is named."""

import csv
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from small_inputs import QUICK, write_glyphs

import locore
from experiments import _jobs, compare, run
from experiments import _rates as rates
from experiments._config import read_experiment, same_run
from experiments._profiling import costs
from locore.metrics.bootstrap import interval
from locore.report import pareto, tables
from locore.report.differences import differences, of_the_first
from locore.report.results import BoardResults, BoardRun


def run_here(command):
    """Do what `run_command` does in a process of its own; for most tests, its seconds of imports would be in vain."""
    assert command[:3] == [sys.executable, "-m", "experiments.run"]
    return None if run.main(command[3:]) == 0 else "exit status 2"


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(_jobs, "run_command", run_here)


@pytest.fixture
def arguments(tmp_path, cache):
    lines = [*QUICK, f"folder.path = '{write_glyphs(tmp_path / 'images')}'"]
    files = []
    for name, backbone in (("good", "query_attention"), ("bad", "transformer")):
        path = tmp_path / f"{name}.gin"
        path.write_text(f"Model.backbone = '{backbone}'\n")
        files.append(str(path))
    settings = [part for line in lines for part in ("--set", line)]
    return [*files, "--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs"), *settings]


def results(folder) -> BoardResults:
    return BoardResults.read(folder)


def test_a_table_with_a_failure_and_no_second_run(arguments, tmp_path, monkeypatch, capsys):
    in_a_process, commands = _jobs.run_command, []

    def watched(command):
        commands.append(command)
        if "bad.gin" in command[command.index("--gin") + 1]:
            return in_a_process([sys.executable, "-c", "import sys; sys.exit('error: it broke')"])
        return run_here(command)

    monkeypatch.setattr(_jobs, "run_command", watched)
    assert compare.main(arguments) == 1
    assert len(commands) == 2
    table = (tmp_path / "results" / "table.md").read_text()
    found = results(tmp_path / "results").runs["good", 0]
    assert "| bad, seed 0 |" in table and "error: it broke" in table
    assert f"{found.metrics['protocols']['all']['reranked']['mAP@R']:.1f}" in table and "| oracle |" in table
    assert (tmp_path / "results" / "table.csv").read_text().startswith("protocol,,parameters,start,state a layer,R@1")
    assert (tmp_path / "results" / "table.png").stat().st_size > 1000
    compare.main(arguments)
    assert len(commands) == 3  # only the failed one again
    compare.main([*arguments, "--set", "Training.steps = 7"])
    assert len(commands) == 5  # another configuration: both
    assert results(tmp_path / "results").runs["good", 0].config != found.config


@pytest.mark.slow
def test_a_table_for_each_board_with_what_a_list_costs(arguments, tmp_path):
    for name, queries in (("few", 9), ("many", 12)):
        (tmp_path / f"{name}.gin").write_text(f"folder.max_queries = {queries}\n")
    untrained = []
    for name in ("chamfer", "superglobal"):
        untrained.append(str(tmp_path / f"{name}.gin"))
        (tmp_path / f"{name}.gin").write_text(f"Model.method = '{name}'\nReranking.ensemble = False\n")
    on = ["--on", *(str(tmp_path / f"{name}.gin") for name in ("few", "many"))]
    folder = tmp_path / "results"
    rows = [arguments[0], *untrained, *arguments[2:]]
    assert compare.main([*rows, *on, "--costs", "--latex", "--seeds", "0", "1"]) == 0
    for name, queries in (("few", 9), ("many", 12)):
        board = results(folder / name)
        # What is not trained has one seed.
        assert set(board.runs) == {("chamfer", 0), ("good", 0), ("good", 1), ("superglobal", 0)}
        assert board.runs["good", 1].metrics["protocols"]["all"]["queries"] == queries
        assert len(board.runs["good", 1].queries["all"]["mAP@R"]) == queries
        measured = board.costs
        assert all(cost["ms"] > 0 for cost in measured.values())
        assert measured["good"]["gflops"] > 0 and measured["chamfer"]["gflops"] is None
        assert measured["chamfer"]["stored"] == measured["good"]["stored"] == 4 * 1280 + 2 * 4 * (5 + 112)
        assert measured["superglobal"]["stored"] == 4 * 1280  # which reads no locals
        assert f"{measured['good']['stored']:,}" in (folder / name / "table.md").read_text()
        with open(folder / name / "table.csv", newline="") as file:
            table = {row[""]: row for row in csv.DictReader(file)}
        points = [(measured[row]["ms"], float(table[row]["mAP@R"].split()[0]), row) for row in measured]
        for ms, quality, row in points:  # to the digit that is shown
            beaten = any(m < ms and q > quality for m, q, _ in points)
            assert not (beaten and table[row]["front"])
        assert any(table[row]["front"] == "yes" for row in measured)
        assert (folder / name / "table.tex").read_text().startswith("% all\n\\begin{tabular}")
    assert (folder / "pareto.png").stat().st_size > 1000


@pytest.mark.slow
def test_files_joined_by_a_plus_are_one_row_in_a_process_of_its_own(arguments, tmp_path):
    (tmp_path / "short.gin").write_text("Training.steps = 2\n")
    row = f"{arguments[0]}+{tmp_path / 'short.gin'}"
    assert compare.main([row, *arguments[2:]]) == 0
    assert set(results(tmp_path / "results").runs) == {("good+short", 0)}


def test_what_cannot_be_measured_leaves_the_tables(arguments, tmp_path, monkeypatch, capsys, here):
    def broken(*_):
        raise ValueError("it broke")

    monkeypatch.setattr(costs, "side_by_side", broken)
    assert compare.main([arguments[0], *arguments[2:], "--costs"]) == 1
    assert "were not measured: it broke" in capsys.readouterr().err
    assert "| good |" in (tmp_path / "results" / "table.md").read_text()
    monkeypatch.setattr(_jobs, "run_command", lambda _: "it broke")
    assert compare.main([arguments[1], *arguments[2:], "--costs"]) == 1
    assert "| bad, seed 0 |" in (tmp_path / "results" / "table.md").read_text()


def test_the_front_is_what_nothing_else_beats():
    random = np.random.default_rng(0)
    points = [(float(ms), float(quality), str(n)) for n, (ms, quality) in enumerate(random.integers(0, 9, (60, 2)))]
    front = pareto.pareto_front(points)
    for ms, quality, name in points:
        beaten = any((m <= ms and q >= quality) and (m, q) != (ms, quality) for m, q, _ in points)
        assert ((ms, quality) in [p[:2] for p in front]) != beaten, name
    assert len({p[:2] for p in front}) == len(front)


def test_every_machine_is_named_with_its_rows():
    protocols = {"all": {"queries": 3}}
    run = {"protocols": protocols, "candidates": 9, "benchmark": "b", "machine": "a CPU", "commit": "c"}
    rows = {"one": [run, run], "two": [run]}
    assert "Machine: a CPU. Commits: c." in tables.made(rows, "command")
    rows["two"] = [run, {**run, "machine": "a GPU"}]
    assert "Machine: a CPU (one, two); a GPU (two). Commits: c." in tables.made(rows, "command")


def test_seconds_of_different_machines_are_not_averaged():
    protocols = {"all": {"shown": ["R@1"], **{key: {"R@1": 1.0} for key in ("global", "reranked", "oracle")}}}
    run = {"protocols": protocols, "parameters": 0, "latency_ms": 1.0, "peak_memory_mb": 1}
    slow, fast = ({**run, "machine": m, "seconds": {"training": s}} for m, s in (("a CPU", 1340.0), ("a GPU", 61.0)))
    slower = {**slow, "seconds": {"training": 1360.0}}
    _, one, other, _ = tables.rows({"one": [slow, slower], "other": [slow, fast]}, {}, "all")
    assert one["training s"] == "1350 ± 14" and other["training s"] == "1340 / 61"


def test_published_numbers_stand_beside_their_rows(tmp_path):
    path = tmp_path / "published.csv"
    path.write_text('table,row,"theirs, %"\nresults,global,12.3\nresults,one,45.6\nother,one,78.9\n')
    published = tables.read_reference(path, "results")
    protocols = {"all": {"shown": ["R@1"], **{key: {"R@1": 1.0} for key in ("global", "reranked", "oracle")}}}
    run = {
        "protocols": protocols,
        "parameters": 0,
        "seconds": {},
        "latency_ms": 1.0,
        "peak_memory_mb": 1,
        "machine": "m",
    }
    table = tables.rows({"one": [run], "two": [run]}, {}, "all", reference=published)
    assert [(row[""], row["theirs, %"]) for row in table] == [
        ("global", "12.3"),
        ("one", "45.6"),
        ("two", ""),
        ("oracle", ""),
    ]
    path.write_text("row\none\n")
    with pytest.raises(ValueError, match="columns table and row"):
        tables.read_reference(path, "results")


def test_a_table_of_what_is_finished_runs_nothing(arguments, tmp_path, monkeypatch, capsys, here):
    folder = tmp_path / "results"
    assert compare.main([arguments[0], *arguments[2:], "--seeds", "0", "1"]) == 0
    before = {name: (folder / name).read_text() for name in ("table.md", "table.csv")}
    monkeypatch.setattr(_jobs, "run_command", lambda _: pytest.fail("something was run"))
    assert compare.main(["--finished", "--results", str(folder)]) == 0
    after = {name: (folder / name).read_text() for name in before}
    assert after["table.csv"] == before["table.csv"]
    assert after["table.md"].split("Command:")[0] == before["table.md"].split("Command:")[0]
    capsys.readouterr()
    assert compare.main(["good", "bad", "--finished", "--results", str(folder)]) == 0
    assert "bad: left out" in capsys.readouterr().err
    assert compare.main(["bad", "--finished", "--results", str(folder)]) == 2
    assert "has no run of these rows" in capsys.readouterr().err
    assert compare.main(["--finished"]) == 2
    assert "needs --results" in capsys.readouterr().err


def test_damaged_results_are_named(arguments, tmp_path, capsys, here):
    assert compare.main([arguments[0], *arguments[2:]]) == 0
    for name in ("runs.csv", "queries.npz"):
        path = tmp_path / "results" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:100])
        assert compare.main(["--finished", "--results", str(tmp_path / "results")]) == 2
        assert "are damaged" in capsys.readouterr().err
        path.write_bytes(whole)


def test_a_run_of_before_a_setting_came_is_the_same_where_it_is_at_its_default():
    (_, config), (_, other) = (
        read_experiment(["gin/mamba.gin"], lines, seed=0) for lines in ([], ["Training.ema_decay = 0.5"])
    )
    line = re.compile(r"^Training\.ema_decay = .*\n", re.MULTILINE)
    assert len(line.findall(config)) == 1
    older = line.sub("", config)
    assert same_run(config, config) and same_run(config, older)
    assert not same_run(other, older) and not same_run(older, config)
    assert not same_run(config, older.replace("# seed 0", "# seed 1"))


def test_rows_that_cannot_be_compared_end_it_before_the_first_run(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(_jobs, "run_command", lambda _: pytest.fail("something was run"))
    (tmp_path / "bad.gin").write_text("Extractor.image_size = 48\n")
    lines = [arguments.index(part) for part in arguments if part == "Extractor.image_size = 32"]
    del arguments[lines[0] - 1 : lines[0] + 1]
    assert compare.main(arguments) == 2
    assert "'bad' and 'good' differ in Extractor.image_size: 48 and 96" in capsys.readouterr().err


def test_two_backbones_are_compared_on_the_same_queries():
    shown, groups = ["R@1"], np.array(["a", "a", "b", "b", "c", "c"])

    def run(*values):
        return BoardRun("row", "", {}, {"all": {"class": groups, "R@1": np.array(values, float)}})

    finished = {"one": [run(1, 1, 1, 1, 0, 0), run(1, 1, 1, 1, 1, 1)], "other": [run(0, 0, 1, 1, 0, 0)]}
    pairs = differences(finished, shown, "all")
    ours = np.array([[1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1]])
    low, high = interval(100 * ours, groups, 100 * np.array([0, 0, 1, 1, 0, 0]))
    assert pairs == [{"first": "one", "second": "other", "R@1": f"+50.0 [{low:+.1f}, {high:+.1f}]"}]
    assert f"| other | {pairs[0]['R@1']} |" in of_the_first(pairs)
    assert of_the_first(differences({"one": finished["one"]}, shown, "all")) == ""
    third = differences({**finished, "third": finished["other"]}, shown, "all")
    assert [(p["first"], p["second"]) for p in third] == [("one", "other"), ("one", "third"), ("other", "third")]
    assert "other less" not in of_the_first(third)


def test_a_wrong_name_ends_it_before_the_first_run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(_jobs, "run_command", lambda _: pytest.fail("something was run"))
    assert compare.main([*arguments, "--set", "Model.size = 'tinny'"]) == 2
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
    assert tables.latex(table).split("\n") == expected


def test_a_run_folder_is_a_row_that_is_evaluated_as_it_is(arguments, tmp_path, capsys, here):
    settings = arguments[arguments.index("--set") :]
    trained = tmp_path / "learned here"
    assert run.main(["--gin", arguments[0], *settings, "--out", str(trained)]) == 0
    weights = (trained / "model.safetensors").read_bytes()
    (tmp_path / "few.gin").write_text("folder.max_queries = 9\n")
    results = ["--results", str(tmp_path / "results"), "--runs", str(tmp_path / "runs")]
    assert compare.main([str(trained), "--on", str(tmp_path / "few.gin"), *results, *settings]) == 0
    (evaluated,) = (tmp_path / "runs").iterdir()
    assert not (evaluated / "model.safetensors").exists() and (trained / "model.safetensors").read_bytes() == weights
    benchmark = locore.benchmarks.create("folder", path=str(tmp_path / "images"), max_queries=9)
    extractor = locore.Extractor(image_size=32, local_stage=3, grid_size=2)
    found = locore.evaluate(locore.load(trained), benchmark, extractor, candidates=8)["all"]
    (row,) = [each for (name, _), each in BoardResults.read(tmp_path / "results" / "few").runs.items()]
    assert row.metrics["protocols"]["all"]["reranked"] == pytest.approx(found["reranked"])
    assert compare.main([str(trained), *results, *settings]) == 2
    assert "say by --on or --gin on which data" in capsys.readouterr().err


def test_each_row_gets_the_rate_that_validates_best_and_is_measured_once_at_the_end(arguments, tmp_path, here, capsys):
    """One command, from trials on held-out classes to queries that nobody has looked at."""
    for name, half in (("work", "even"), ("final", "odd")):
        (tmp_path / f"{name}.gin").write_text(f"Data.asked = '{half}'\n")
    rows = [arguments[0], *arguments[2:], "--gin", str(tmp_path / "work.gin")]
    fair = [*rows, "--rates", "1e-3", "3e-1", "--final", str(tmp_path / "final.gin")]
    assert compare.main(fair) == 0
    folder, final = tmp_path / "results", tmp_path / "results-final"
    trials = rates.read(folder)
    best = max(trials, key=lambda trial: float(trial.validation))
    assert [(trial.rate, trial.steps) for trial in trials] == [("1e-3", 2), ("3e-1", 2)]
    tried = {path.name.split("-")[1] for path in (tmp_path / "runs").iterdir() if (path / "metrics.json").exists()}
    assert tried == {"seed0"}  # no trial looked at a test image
    for made in (tmp_path / "runs").glob("good-seed*"):
        if "checkpoint = None" in (text := (made / "config.gin").read_text()):
            assert f"Training.learning_rate = {float(best.rate)!r}" in text
    asked = [{*results(each).runs["good", 0].queries["all"]["class"]} for each in (folder, final)]
    assert asked[0] and asked[1] and not asked[0] & asked[1]
    assert set(results(final).runs) == {("good", 0)}
    page = (final / "table.md").read_text()
    assert page.startswith("**Final measurement**") and "**Final" not in (folder / "table.md").read_text()
    assert f"- good, 2 steps: 1e-3: {trials[0].validation}, 3e-1: {trials[1].validation}" in (
        (folder / "table.md").read_text()
    )
    with open(folder / "curves.csv", newline="") as file:
        curve = list(csv.DictReader(file))
    assert [(line["seed"], line["step"]) for line in curve] == [("0", step) for step in "246"]
    runs = sorted((tmp_path / "runs").iterdir())
    assert compare.main(fair) == 0 and sorted((tmp_path / "runs").iterdir()) == runs  # all of it is finished
    assert compare.main([*fair, "--set", "Training.steps = 4"]) == 2
    assert "has a final measurement of other rows" in capsys.readouterr().err
    assert compare.main([*fair[:-1], str(tmp_path / "work.gin")]) == 2
    assert "changes nothing of the data of 'good'" in capsys.readouterr().err


@pytest.mark.slow
def test_several_runs_at_a_time_give_the_same_table_and_end_with_the_command(arguments, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("NUMBA_NUM_THREADS", "1")
    command = [sys.executable, "-m", "experiments.compare", *arguments, "--rates", "1e-3", "3e-3", "--jobs"]
    assert subprocess.run([*command, "1"], capture_output=True).returncode == 0
    before, trials = results(tmp_path / "results").runs, rates.read(tmp_path / "results")
    shutil.rmtree(tmp_path / "results")
    shutil.rmtree(tmp_path / "runs")
    killed = subprocess.Popen([*command, "2"], stderr=subprocess.PIPE, text=True)
    started = [killed.stderr.readline() for _ in range(2)]
    assert all("started, see" in line for line in started)
    killed.terminate()
    assert "the same command resumes" in killed.communicate()[1]
    assert subprocess.run([*command, "2"], capture_output=True).returncode == 0
    after = results(tmp_path / "results").runs
    assert {key: run.metrics["protocols"] for key, run in after.items()} == {
        key: run.metrics["protocols"] for key, run in before.items()
    }
    assert {*rates.read(tmp_path / "results")} == {*trials} and len(trials) == 4


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_job_that_fails_is_told_with_its_last_message(at_once, tmp_path):
    commands = ["print('well')", "import sys; print('first', file=sys.stderr); sys.exit('error: it broke')", "1"]
    jobs = [
        _jobs.Job(f"job {n}", [sys.executable, "-c", command], tmp_path / f"{n}.log")
        for n, command in enumerate(commands)
    ]
    assert dict(_jobs.run_jobs(jobs, at_once)) == {0: None, 1: "exit status 1, error: it broke", 2: None}


def test_jobs_at_a_time_share_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(_jobs.torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(_jobs.os, "cpu_count", lambda: 6)
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    shown = (
        "import os, sys; sys.stderr.write(' '.join(os.environ[n] for n in ('OMP_NUM_THREADS', 'CUDA_VISIBLE_DEVICES')))"
    )
    jobs = [_jobs.Job(str(n), [sys.executable, "-c", shown], tmp_path / f"{n}.log") for n in range(3)]
    assert dict(_jobs.run_jobs(jobs, 3)) == {0: None, 1: None, 2: None}
    assert [(tmp_path / f"{n}.log").read_text() for n in range(3)] == ["2 0", "2 1", "2 0"]


def test_the_final_measurement_waits_for_every_row(arguments, tmp_path, here, capsys):
    (tmp_path / "final.gin").write_text("Data.asked = 'odd'\n")
    lines = ["--set", "Training.learning_rate = 1e30", "--set", "Training.max_grad_norm = 1e30"]
    fair = [arguments[0], *arguments[2:], *lines, "--final", str(tmp_path / "final.gin")]
    assert compare.main(fair) == 1
    assert "Not all rows are finished" in capsys.readouterr().err and not (tmp_path / "results-final").exists()
    assert compare.main([arguments[0], *arguments[2:], *lines[2:], "--rates", "1e30"]) == 1
    assert "No trial of 'good' ended" in (tmp_path / "results" / "table.md").read_text()
