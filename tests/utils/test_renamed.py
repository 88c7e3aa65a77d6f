"""Settings that were renamed: every old name is read, and nothing that was stored is lost."""

import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_inputs import QUICK, write_glyphs

import locore
from experiments import _config, run
from locore.descriptors import Descriptors, Extractor
from locore.utils.renamed import RENAMED, original_keys, rename_keys, rename_settings

OLD_RUN = Path(__file__).parents[1] / "golden" / "old_run"


@pytest.mark.parametrize("new", sorted(set(RENAMED.values())))
def test_a_new_name_is_a_setting_of_today(new):
    owner, setting = new.split(".")
    known = {"Descriptors": Descriptors} | {
        kind.__name__: kind
        for kind in (
            *(locore.Model, locore.Reranking, locore.Outputs, locore.Experiment, locore.Training, locore.Sampling),
            *(locore.Extractor, locore.Finetuning, locore.Files, _config.Embedding, _config.Extraction),
        )
    }
    for registry in (_config.rerankers, _config.benchmarks):
        known |= {name: registry.entry(name).build for name in registry.available()}
    assert setting in inspect.signature(known[owner]).parameters


def test_names_are_replaced_as_a_whole_and_reported_once():
    text = "Training.batch = 4\nTraining.batch = 8\nTraining.batch_size = 2\nmine.Training.batch = 1\n"
    new, old = rename_settings(text)
    assert new == "Training.batch_size = 4\nTraining.batch_size = 8\nTraining.batch_size = 2\nmine.Training.batch = 1\n"
    assert old == ["Training.batch"]


def test_keys_go_there_and_back():
    settings = dataclasses.asdict(Extractor(top_k=5, grid_size=2))
    assert rename_keys("Extractor", original_keys("Extractor", settings)) == settings
    assert original_keys("Extractor", settings)["top"] == 5


def test_a_checkpoint_of_version_0_1_gives_the_scores_that_it_gave():
    model, golden = locore.load(OLD_RUN), load_file(OLD_RUN / "expected.safetensors")

    def descriptors(whose):
        local = golden[f"{whose}_local"]
        return Descriptors(
            global_descriptor=golden[f"{whose}_global"],
            local=local,
            position=golden[f"{whose}_position"],
            scale=torch.zeros(local.shape[:-1], dtype=torch.long),
            mask=torch.ones(local.shape[:-1], dtype=torch.bool),
            weight=torch.ones(local.shape[:-1]),
        )

    query, candidates = descriptors("query"), descriptors("candidate")
    similarities = torch.einsum("bd,bkd->bk", query.global_descriptor, candidates.global_descriptor)
    scores = model.rerank(locore.Shortlist(similarities, query, candidates)).scores
    torch.testing.assert_close(scores, golden["scores"], atol=1e-5, rtol=0)
    trained = locore.trained_on(OLD_RUN)
    assert trained.candidates == 8
    assert trained.extractor == Extractor(image_size=32, local_stage=3, grid_size=2, batch_size=64)


def test_cached_descriptors_are_found_under_their_old_keys(monkeypatch):
    """The keys that version 0.1.0 gave, with the version of timm of then."""
    monkeypatch.setattr("timm.__version__", "1.0.31")
    first = {
        "5ad2fcfb1bdb3d22": Extractor(),
        "ba2fc4b983e4cb9d": Extractor(
            image_size=32, local_stage=3, local_features="top", top_k=5, batch_size=3, keep_aspect_ratio=True
        ),
    }
    assert {extractor.fingerprint: extractor for extractor in first.values()} == first


def test_an_old_gin_file_gives_the_run_of_today_and_a_notice(tmp_path, capsys):
    _config._announced.clear()
    root = write_glyphs(tmp_path / "photos")
    old = tmp_path / "old.gin"
    old.write_text(
        f"folder.path = '{root}'\nExperiment.backbone = 'query_attention'\nExperiment.candidates = 8\n"
        "Experiment.before = [('superglobal', 8)]\nTraining.batch = 4\nTraining.clip = 0.5\nData.benchmark = 'folder'\n"
        "Sampling.fewest = 1\nExtractor.grid = 2\nExtractor.locals_ = 'grid'\nExperiment.way = 'start-to-end'\n"
    )
    found, config = _config.read_experiment([str(old)], [], seed=0)
    assert found.reranking.first_stages == [("superglobal", 8)] and found.reranking.window_order == "start-to-end"
    assert (found.training.batch_size, found.training.max_grad_norm, found.extractor.grid_size) == (4, 0.5, 2)
    notices = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert "note: Training.clip is called Training.max_grad_norm now; the old name is still read." in notices
    assert len(notices) == len(set(notices)) == 9
    assert "Training.clip" not in config
    _config.read_experiment([str(old)], [], seed=0)
    assert not capsys.readouterr().err  # said once


def test_a_run_of_version_0_1_is_the_run_of_today(tmp_path, capsys):
    """A stored configuration: the finished run is shown, not refused as another one."""
    root = write_glyphs(tmp_path / "photos")
    lines = [
        *QUICK, f"folder.path = '{root}'", "query_attention.width = 16",
        "Reranking.first_stages = [('superglobal', 8)]", "Training.ema_decay = 0.5",
        "Training.grad_accumulation_steps = 2",
    ]  # fmt: skip
    arguments = ["--gin", "gin/query_attention.gin", *(part for line in lines for part in ("--set", line))]
    experiment, config = _config.read_experiment(["gin/query_attention.gin"], lines, seed=0)
    old = config
    for before, now in RENAMED.items():
        old = old.replace(f"{now} = ", f"{before} = ")
    old = "\n".join(line for line in old.splitlines() if not line.startswith("Training.monitor"))  # came later
    assert old != config and _config.same_run(config, old)
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.gin").write_text(old)
    assert run.main([*arguments, "--out", str(folder)]) == 0
    (folder / "config.gin").write_text(old)
    capsys.readouterr()
    assert run.main([*arguments, "--out", str(folder)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert json.loads((folder / "metrics.json").read_text())["candidates"] == experiment.reranking.candidates
