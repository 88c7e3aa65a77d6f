"""The command line on wrong input, and what a dry run says."""

import pytest

from experiments.run import main


def test_dry_run_tells_the_layout_and_the_parameters(capsys):
    assert main(["--gin", "gin/mamba.gin", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "275 tokens" in printed and "Experiment.backbone = 'mamba'" in printed


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gin", "gin/mamab.gin"], "did you mean 'mamba.gin'"),
        (["--gin", "gin/mamba.gin", "--set", "Experiment.backbone = 'mambo'"], "did you mean 'mamba'"),
        (["--gin", "gin/mamba.gin", "--set", "Training.schedule = 'cosin'"], "did you mean 'cosine'"),
        (["--gin", "gin/mamba.gin", "--set", "Trainin.steps = 3"], "Trainin"),
    ],
)
def test_wrong_input_gets_one_sentence(capsys, arguments, words):
    assert main([*arguments, "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert words in message and message.startswith("error: ") and message.count("\n") == 1
