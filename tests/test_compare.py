"""One table from several runs: finished ones are not run again, a failing one is named."""

import json
import sys

import pytest
from small import QUICK, write_glyphs

from experiments import compare


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
    assert (tmp_path / "results" / "table.csv").read_text().startswith(",parameters,R@1")
    assert (tmp_path / "results" / "table.png").stat().st_size > 1000
    compare.main(arguments)
    assert len(commands) == 3  # only the failed one again
    compare.main([*arguments, "--set", "Training.steps = 7"])
    assert len(commands) == 5  # another configuration: both
    again = json.loads((tmp_path / "results" / "good-seed0.json").read_text())
    assert "Training.steps = 7" in again["config"]


def test_a_wrong_name_ends_it_before_the_first_run(arguments, monkeypatch, capsys):
    monkeypatch.setattr(compare, "_run", lambda _: pytest.fail("something was run"))
    assert compare.main([*arguments, "--set", "Experiment.size = 'tinny'"]) == 2
    assert "did you mean 'tiny'" in capsys.readouterr().err
