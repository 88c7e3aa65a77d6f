"""The command line on wrong input, and what a dry run says."""

import pytest
from small_inputs import QUICK, write_glyphs

from experiments.run import main


def test_dry_run_tells_the_layout_and_the_parameters(capsys):
    assert main(["--gin", "gin/mamba.gin", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "275 tokens" in printed and "Model.backbone = 'mamba'" in printed


def test_folders_beside_it_are_not_taken_for_those_of_gin_files(tmp_path, monkeypatch, capsys):
    (tmp_path / "data").mkdir()
    (tmp_path / "size").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # as `python -m` does with the folder that it is run in
    assert main(["--gin", "gin/mamba.gin", "--dry-run"]) == 0
    assert "Data.benchmark = 'glyphs'" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--gin", "gin/mamab.gin"], "did you mean 'mamba.gin'"),
        (["--gin", "gin/mamba.gin", "--set", "Model.backbone = 'mambo'"], "did you mean 'mamba'"),
        (["--gin", "gin/mamba.gin", "--set", "Training.schedule = 'cosin'"], "did you mean 'cosine'"),
        (["--gin", "gin/mamba.gin", "--set", "Reranking.dtype = 'float16'"], "did you mean 'bfloat16'"),
        (
            ["--gin", "gin/mamba.gin", "--set", "Trainin.steps = 3"],
            "did you mean 'Training'",
        ),
        (["--gin", "gin/mamba.gin", "--set", "Training.stepps = 3"], "stepps"),
        (["--gin", "gin/mamba.gin", "--set", "Training.steps 3"], "In 'Training.steps 3'"),
        (["--gin", "gin/mamba.gin", "--set", "mamba.depth = ["], "EOF in multi-line"),
        (["--gin", "gin/mamba.gin", "--set", "mamba.widht = 3"], "did you mean 'width'"),
        (["--gin", "gin/mamba.gin", "--set", "glyphs.max_querys = 3"], "did you mean 'max_queries'"),
        (["--gin", "gin/mamba.gin", "--set", "Data.benchmark = 'folder'"], "give folder.path"),
        (["--gin", "gin/mamba.gin", "--resume", "--out", "/none"], "no run to resume"),
    ],
)
def test_wrong_input_gets_one_sentence(capsys, arguments, words):
    assert main(arguments if "--resume" in arguments else [*arguments, "--dry-run"]) == 2
    message = capsys.readouterr().err
    assert words in message and message.startswith("error: ") and message.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("Experiment.training = @Training()", "write Training.… = … instead"),
        ("Experiment.data = 'x'", "write Data.… = … instead"),
        ("Training.batch_sze = 4", "Training has no setting 'batch_sze'; did you mean 'batch_size'?"),
        ("folder.path = nowhere", "write text in quotes"),
        ("Model.whitening = 5", "in [0, 1]"),
        ("Model.dropout = -0.1", "in [0, 1]"),
        ("Reranking.alpha = 0.5\nExperiment.temperature = 0", "above 0"),
        ("Training.learning_rate = -1", "finite and not negative"),
        ("Training.warmup_steps = -1", "finite and not negative"),
        ("Reranking.candidates = 1", "2 or more"),
    ],
)
def test_settings_out_of_range_are_reported_before_the_work(capsys, line, words):
    assert (
        main(["--gin", "gin/mamba.gin", "--dry-run", *(p for each in line.split("\n") for p in ("--set", each))]) == 2
    )
    assert words in capsys.readouterr().err


@pytest.mark.parametrize("seed", ["-1", "x", "1.5", "9999999999"])
def test_a_seed_is_a_whole_number(capsys, seed):
    with pytest.raises(SystemExit):
        main(["--gin", "gin/mamba.gin", "--dry-run", "--seed", seed])
    assert "is not a whole number from 0" in capsys.readouterr().err


def test_lists_that_train_may_be_longer_than_those_that_are_asked(capsys):
    line = "Sampling.candidates = 48"
    counted = []
    for more in ([], ["--set", line], ["--set", "Model.min_positions = 539"]):
        assert main(["--gin", "gin/mamba.gin", "--dry-run", *more]) == 0
        counted.append(capsys.readouterr().out.split("Parameters: ")[1])
    assert counted[0] != counted[1] == counted[2]  # positions for 49 images of 11 tokens


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_a_size_mixes_into_an_experiment(capsys, size):
    assert main(["--gin", "gin/longformer.gin", "--gin", f"gin/size/{size}.gin", "--dry-run"]) == 0
    assert f"Model.size = '{size}'" in capsys.readouterr().out


def test_wrong_images_get_one_sentence(capsys, tmp_path):
    def run(name, *lines):
        settings = [part for line in (*QUICK, *lines) for part in ("--set", line)]
        status = main(["--gin", "gin/query_attention.gin", "--out", str(tmp_path / name), *settings])
        return status, capsys.readouterr().err.strip().splitlines()[-1]

    status, message = run("a", "folder.path = '/none'")
    assert status == 2 and message.startswith("error: There is no folder or zip at '/none'")
    (tmp_path / "empty").mkdir()
    status, message = run("a", f"folder.path = '{tmp_path / 'empty'}'")
    assert status == 2 and "0 images in 0 sub-folders" in message
    root = write_glyphs(tmp_path / "images")
    status, message = run("c", f"folder.path = '{root}'", "Reranking.candidates = 80")
    assert status == 2 and "lower the number of candidates" in message
    broken = sorted(root.rglob("*.png"))[-1]
    broken.write_bytes(b"no image")
    status, message = run("d", f"folder.path = '{root}'")
    assert status == 2 and broken.name in message and "repair or remove it" in message
