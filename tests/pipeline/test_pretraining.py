"""A pretraining without images, and what starts from it."""

import json

import pytest
import torch
from small_inputs import QUICK, write_glyphs

from experiments.pretrain import main as pretrain
from experiments.run import main as run
from locore.checkpoints import pretrained
from locore.metrics.retrieval import map_at_r
from locore.pipeline import pretraining
from locore.pipeline.settings import RESIDUAL_HEAD, Model
from locore.reranking import ListwiseReranker
from locore.reranking.reranker import rerankers
from locore.reranking.weights_file import read
from locore.training.synthetic import draw_lists

SMALL = ["query_attention.depth = 1", "query_attention.width = 32", "query_attention.heads = 2"]


def options(*lines):
    return [part for line in lines for part in ("--set", line)]


@pytest.fixture(scope="module", autouse=True)
def few_tested():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretraining, "TESTED", 8)
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    arguments = ["--gin", "gin/query_attention.gin", *options(*SMALL, "Pretraining.steps = 4"), "--out", str(folder)]
    assert pretrain(arguments) == 0
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("photos"))


def reranker(**settings):
    size = {"depth": 1, "width": 32, "heads": 2, "expansion": 5.75}
    head = {"residual": 20.0, "matching": "list", "kept_locals": 12, "positions": "none", **settings}
    return ListwiseReranker("query_attention", 40, 24, 99, settings=size, **head)


def test_a_pretraining_measures_itself_and_resumes_to_the_same_weights(folder, tmp_path, monkeypatch):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["mAP@R"]["global"]["mean"] < metrics["mAP@R"]["chamfer"]["mean"]
    assert (folder / "training.png").stat().st_size > 5000
    config = (folder / "config.gin").read_text()
    (tmp_path / "config.gin").write_text(config)
    broken = torch.optim.AdamW.step
    steps = []

    def stop_in_the_middle(self, *arguments, **more):
        steps.append(1)
        if len(steps) == 3:
            raise KeyboardInterrupt
        return broken(self, *arguments, **more)

    arguments = ["--gin", "gin/query_attention.gin", *options(*SMALL, "Pretraining.steps = 4"), "--out", str(tmp_path)]
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", stop_in_the_middle)
        assert pretrain(arguments) == 130
    assert not (tmp_path / "model.safetensors").exists()
    assert pretrain(arguments) == 0
    assert (tmp_path / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_all_but_the_projections_starts_from_it(folder):
    torch.manual_seed(0)
    model = reranker()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pretrained.start_from(model, folder / "model.safetensors")
    theirs = read(folder / "model.safetensors").tensors
    for name, value in model.state_dict().items():
        if name.startswith(("embedding.local.", "embedding.global_.")):
            assert torch.equal(value, before[name])
        elif name == "embedding.position.weight":
            assert torch.equal(value[2], theirs[name][2].float())
        else:
            assert torch.equal(value, theirs[name].float()), name
    assert model.head.weight.abs().max() > 0  # it has left the start, which is zero


@pytest.mark.parametrize("path", sorted(pretrained.CARRIED.glob("*.safetensors")), ids=lambda path: path.stem)
def test_weights_that_the_package_carries_fit_their_re_ranker_and_match(path):
    backbone, size = path.stem.rsplit("-", 1)
    model = pretraining.Pretraining(Model(backbone=backbone, size=size, **RESIDUAL_HEAD)).create()
    pretrained.start_from(model, pretrained.find("synthetic", backbone, size))
    torch.manual_seed(0)  # of the directions of the whitening
    found = {"search": 0.0, "chamfer": 0.0, "pretrained": 0.0}
    for number in range(4):
        lists, labels = draw_lists(8, torch.Generator().manual_seed(900 + number))
        pretraining._whiten(model, lists)
        chamfer, ours = (reranker.rerank(lists).scores for reranker in (rerankers.create("chamfer"), model))
        for name, scores in (("search", lists.similarities), ("chamfer", chamfer), ("pretrained", ours)):
            right = labels.gather(1, scores.argsort(1, descending=True)).numpy()
            found[name] += float(map_at_r(right, labels.sum(1).numpy()).mean())
    # What attention alone has learned is hardly better than chamfer (docs/log.md).
    assert found["pretrained"] > found["search" if backbone in ("list_attention", "longformer") else "chamfer"]
    assert path.stat().st_size < 6 * 2**20


def test_a_run_starts_from_it_and_at_rate_0_stays_there(folder, photos, tmp_path):
    lines = [*QUICK, f"folder.path = '{photos}'", f"Model.start = '{folder}'", "Training.learning_rate = 0.0"]
    arguments = ["--gin", "gin/query_attention.gin", *options(*lines), "--out", str(tmp_path)]
    assert run(arguments) == 0
    theirs, ours = read(folder / "model.safetensors").tensors, read(tmp_path / "model.safetensors").tensors
    assert torch.equal(ours["head.weight"], theirs["head.weight"].float())
    assert "sha256" in (tmp_path / "config.gin").read_text()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("Model.start = 'synthetik'", "There is no model at"),
        ("Model.start = 'synthetic'", "There is no synthetic start of 'query_attention'"),
        ("Model.whitening = None", "Model.start is for list-wise re-rankers whose projections whiten"),
        ("Model.matching = 'query'", "was pretrained with matching = 'list', and this re-ranker has 'query'"),
        ("query_attention.width = 64", "do not fit its model: of another shape: "),
        ("query_attention.depth = 2", "do not fit its model: missing: encoder.layers.1"),
    ],
)
def test_what_does_not_fit_is_one_sentence(folder, photos, tmp_path, capsys, line, message):
    lines = [*QUICK, f"folder.path = '{photos}'", f"Model.start = '{folder}'", line]
    arguments = ["--gin", "gin/query_attention.gin", *options(*lines), "--out", str(tmp_path / "run")]
    assert run(arguments) == 2
    assert message in capsys.readouterr().err


def test_a_pretraining_needs_a_list_wise_row(tmp_path, capsys):
    for file, line in (("gin/peers/chamfer.gin", None), ("gin/mamba.gin", "Model.positions = 'absolute'")):
        arguments = ["--gin", file, *options(*([line] if line else [])), "--out", str(tmp_path / "run")]
        assert pretrain(arguments) == 2
        assert "A pretraining makes a list-wise re-ranker" in capsys.readouterr().err
    assert pretrain(["--gin", "gin/mamba.gin", *options("Pretraining.steps = 0"), "--out", str(tmp_path)]) == 2
    assert "must be at least 1" in capsys.readouterr().err
