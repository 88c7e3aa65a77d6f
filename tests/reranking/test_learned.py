"""Learned pair-wise re-rankers: the outputs of their published code, and what holds for all of them."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from golden_files import FOLDER
from safetensors.torch import load_file
from small_inputs import QUICK, write_glyphs
from torch import nn
from torch.nn import functional as F

import locore
from experiments.run import main
from locore.checkpoints import native
from locore.descriptors import Descriptors
from locore.report import tables
from locore.reranking import Shortlist
from locore.reranking.learned.ames import AMES
from locore.reranking.learned.cvnet import CVNet
from locore.reranking.learned.elvis import ELViS, assignment
from locore.reranking.learned.r2former import R2Former
from locore.reranking.learned.rrt import RRT, MapRRT
from locore.reranking.pairwise import PairwiseReranker
from locore.utils import memory

SMALL = {"depth": 3, "heads": 4, "inner": 32}
MODELS = {
    "rrt_sop": lambda: MapRRT(16, **SMALL),
    "rrt_gld": lambda: RRT(16, 40, **SMALL),
    "ames": lambda: AMES(24, width=16, **{**SMALL, "heads": 2}),
    "ames_binary": lambda: AMES(24, width=16, bits=16, **{**SMALL, "heads": 2}),
    "elvis": lambda: ELViS(24),
    "elvis_binary": lambda: ELViS(24, bits=128),
    "r2former": lambda: R2Former(32, depth=3, pair_depth=2, heads=2, matches=5),
}
UNTOLD = {"ames": {"heads": 2}, "elvis": {}, "r2former": {"heads": 2}, "rrt": {}}  # what the golden tensors do not show
CASES = sorted(
    name for path in FOLDER.glob("*.io.safetensors") if (name := path.name.split(".")[0]).startswith(tuple(UNTOLD))
)


def published(case: str):
    """The model with its published weights, and what was computed with them."""
    untold = UNTOLD[next(family for family in UNTOLD if case.startswith(family))]
    model = locore.load(FOLDER / f"{case}.weights.safetensors", **untold)
    return model, load_file(FOLDER / f"{case}.io.safetensors")


def image(golden: dict[str, torch.Tensor], which: str) -> Descriptors:
    local = golden[f"{which}_local"]
    if local.ndim == 4:
        local = local.flatten(2).mT
    batch, count = local.shape[:2]
    nothing = torch.zeros(batch, count)
    position, weight = torch.zeros(batch, count, 2), nothing
    if f"{which}_mask" not in golden and f"{which}_global" in golden:  # R2Former: x, y, attention, then the descriptor
        position, weight, local = local[..., :2], local[..., 2], local[..., 3:]
    return Descriptors(
        global_descriptor=golden.get(f"{which}_global", torch.zeros(batch, 1)),
        local=local,
        position=position,
        scale=golden.get(f"{which}_scales", nothing).long(),
        mask=~golden.get(f"{which}_mask", nothing.bool()),
        weight=weight,
    )


@pytest.mark.parametrize("case", CASES)
def test_scores_are_the_published_ones(case):
    model, golden = published(case)
    with torch.inference_mode():
        found = getattr(model, "votes", model.pairs)(image(golden, "src"), image(golden, "tgt"))
    expected = golden.get("final_score", golden.get("score"))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    if "score_unmasked" in golden:
        whole = [
            replace(image(golden, which), mask=torch.ones_like(golden[f"{which}_mask"])) for which in ("src", "tgt")
        ]
        with torch.inference_mode():
            found = getattr(model, "votes", model.pairs)(*whole)
        torch.testing.assert_close(found, golden["score_unmasked"], atol=1e-5, rtol=0)
    if "training_logit" in golden:
        with torch.inference_mode():
            found = model.logits(image(golden, "src"), image(golden, "tgt"))
        torch.testing.assert_close(found, golden["training_logit"], atol=1e-5, rtol=0)
    if "local_logits" in golden:
        with torch.inference_mode():
            logits = model.classes(image(golden, "src"), image(golden, "tgt"))
        torch.testing.assert_close(logits, golden["local_logits"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("case", sorted(path.name.split(".")[0] for path in FOLDER.glob("cvnet*.io.safetensors")))
def test_cvnets_correlation_and_classes_are_the_published_ones(case):
    model = locore.load(FOLDER / f"{case}.weights.safetensors")
    golden = load_file(FOLDER / f"{case}.io.safetensors")
    with torch.inference_mode():
        correlation = model.correlation(golden["query_map"], golden["key_map"])
        classes = model.classes(golden["query_map"], golden["key_map"])
    torch.testing.assert_close(correlation.sum((4, 5)), golden["correlation_sum"], atol=1e-5, rtol=1e-6)  # of 96 terms
    torch.testing.assert_close(classes, golden["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(classes.softmax(1)[:, 1], golden["score"], atol=1e-5, rtol=0)


class Line(torch.nn.Module):
    def __init__(self, slope):
        super().__init__()
        self.slope = slope

    def forward(self, votes):
        return self.slope * votes + 1


@pytest.mark.parametrize("sign", [1, -1])
def test_elvis_ranks_by_votes_as_its_training_logit_does(sign):
    torch.manual_seed(0)
    model = ELViS(24).eval()
    model.g = Line(sign)  # what a training may end with
    lists = Shortlist.random(2, 9, 6, 24, 4)
    with torch.inference_mode():
        logits = model(lists)
    assert torch.equal(model.rerank(lists).order, logits.argsort(dim=1, descending=True))


def test_an_assignment_gives_every_row_and_column_what_it_has_to_give():
    random = torch.Generator().manual_seed(0)
    alike, rows, columns = (
        torch.rand(shape, generator=random, dtype=torch.float64) for shape in ((3, 5, 8), (3, 5), (3, 8))
    )
    found = assignment(alike, rows, columns, torch.tensor(1.0, dtype=torch.float64))
    # The rest goes to the bins; columns were scaled last, rows are not yet exact after ten rounds.
    assert (found.sum(1) < 1 + 1e-9).all() and (found.sum(2) < 1.1).all()
    exact = torch.zeros(1, 5, 8, dtype=torch.float64)
    exact[0, 2, 6] = 3.0
    found = assignment(exact, rows[:1], columns[:1], torch.tensor(1.0, dtype=torch.float64))
    assert found.argmax() == 2 * 8 + 6 and found[0, 2, 6] > 0.9


def test_cvnet_reads_the_map_that_locals_were_cells_of():
    model, maps = CVNet(6, 8).eval(), torch.rand(2, 3, 6, 3, 3) + 0.1
    cells = maps.flatten(3).mT
    described = replace(
        Shortlist.random(2, 3, 9, 6, 4).candidates, local=F.normalize(cells, dim=-1), weight=cells.norm(dim=-1)
    )
    shortlist = Shortlist(torch.zeros(2, 2), described[:, 0], described[:, 1:])
    for row in range(2):
        expected = model.classes(maps[row, :1].expand(2, -1, -1, -1), maps[row, 1:]).diff(dim=1).squeeze(1)
        torch.testing.assert_close(model.rerank(shortlist).scores[row], expected, atol=1e-5, rtol=1e-4)


def test_published_weights_are_read_as_people_save_them(tmp_path):
    tensors = load_file(FOLDER / "ames.weights.safetensors")
    shortlist, expected = lists("ames"), published("ames")[0].rerank(lists("ames")).scores
    for name, saved in (
        ("plain.pt", tensors),
        ("training.pth", {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in tensors.items()}}),
    ):
        torch.save(saved, tmp_path / name)
        model = locore.load(tmp_path / name, heads=2)
        torch.testing.assert_close(model.rerank(shortlist).scores, expected, atol=0, rtol=0)
    native.save(model, tmp_path / "ours.safetensors")
    again = locore.load(tmp_path / "ours.safetensors")
    torch.testing.assert_close(again.rerank(shortlist).scores, expected, atol=0, rtol=0)


def test_published_weights_that_do_not_fit_are_reported(tmp_path):
    def load(tensors, **untold):
        torch.save(tensors, tmp_path / "model.pt")
        return locore.load(tmp_path / "model.pt", **untold)

    whole = load_file(FOLDER / "ames.weights.safetensors")
    with pytest.raises(ValueError, match=r"no setting 'head'.*did you mean 'heads'"):
        load(whole, head=2)
    with pytest.raises(ValueError, match=r"missing: classifier\.bias; left over: other"):
        load({**{name: v for name, v in whole.items() if name != "classifier.bias"}, "other": torch.ones(1)}, heads=2)
    with pytest.raises(ValueError, match=r"weights of 'ames', but not all: 'remap_local\.0\.weight' is missing"):
        load({"mtc_token": torch.ones(16)})
    with pytest.raises(ValueError, match="These are tensors of no re-ranker that is known here: one, two"):
        load({"one": torch.ones(1), "two": torch.ones(1)})
    with pytest.raises(ValueError, match=r"embedding\.position\.weight, encoder\.layers\.0\.intermediate\.weight"):
        load({"scale_encoder.weight": torch.ones(3, 8)})
    with pytest.raises(ValueError, match="has weights of 'ames', but of other shapes"):
        load({**whole, "remap_local.0.weight": torch.ones(3)}, heads=2)
    with pytest.raises(ValueError, match="No 'ames' can be built"):
        load(whole, heads=5)
    with pytest.raises(ValueError, match="not finite: mtc_token"):
        load({**whole, "mtc_token": whole["mtc_token"] * torch.nan}, heads=2)
    with pytest.raises(ValueError, match=r"no setting 'head'.*did you mean 'heads'"):
        load(load_file(FOLDER / "locore_landmark.weights.safetensors"), head=4)
    for nothing in ({1: torch.ones(1)}, [torch.ones(1)], torch.ones(1)):
        with pytest.raises(ValueError, match="more than a state dict"):
            load(nothing)
    (tmp_path / "text.pt").write_text("hello")
    with pytest.raises(ValueError, match=r"is not a state dict of torch"):
        locore.load(tmp_path / "text.pt")
    torch.save({"run": print}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="holds an object of print, which could run code"):
        locore.load(tmp_path / "evil.pt")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"holds an object of torch\.nn\.modules\.linear\.Linear, which could run"):
        locore.load(tmp_path / "module.pt")
    with pytest.raises(ValueError, match=r"known here: 0, 1, 2, 3, 4 and 295 more\.$"):
        load({str(number): torch.ones(1) for number in range(300)})


def lists(case: str) -> Shortlist:
    torch.manual_seed(0)
    widths = {"rrt_sop": (16, 8), "rrt_gld": (16, 40), "r2former": (12, 40)}
    local, global_ = widths.get(case, (24, 8))
    return Shortlist.random(2, 6, 9, local, global_)


@pytest.mark.parametrize("case", MODELS)
def test_a_candidates_score_does_not_depend_on_the_others(case):
    model, _ = published(case)
    shortlist = lists(case)
    whole = model.rerank(shortlist)
    alone = torch.cat([model.rerank(shortlist.take(torch.tensor([[k], [k]]))).scores for k in range(6)], dim=1)
    torch.testing.assert_close(whole.scores, alone, atol=1e-5, rtol=1e-5)
    present = torch.ones(2, 6, dtype=torch.bool)
    present[1, 4:] = False
    absent = model.rerank(replace(shortlist, present=present))
    assert (absent.scores[1, 4:] == -torch.inf).all() and torch.equal(absent.scores[0], whole.scores[0])


@pytest.mark.parametrize("case", MODELS)
def test_pairs_that_do_not_fit_at_once_follow_each_other(case, monkeypatch):
    model, shortlist = published(case)[0], lists(case)
    whole, counts = model.rerank(shortlist), []
    pairs = model.pairs
    monkeypatch.setattr(model, "pairs", lambda query, other: counts.append(len(other)) or pairs(query, other))
    monkeypatch.setattr(memory, "VALUES", 5 * model.values(9))
    torch.testing.assert_close(model.rerank(shortlist).scores, whole.scores, atol=1e-5, rtol=1e-5)
    assert counts == [5, 5, 2]


@pytest.mark.parametrize("case", MODELS)
def test_recomputed_gradients_are_those_of_all_pairs_at_once(case, monkeypatch):
    monkeypatch.setattr(memory, "VALUES", 5 * published(case)[0].values(9))
    found = []
    for recompute in (False, True):
        model = published(case)[0].train()
        model.gradient_checkpointing = recompute
        torch.manual_seed(0)
        model(lists(case)).square().sum().backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert found[0].keys() == found[1].keys() and len(found[0]) > 3
    for name, gradient in found[0].items():
        largest = float(gradient.abs().max())
        torch.testing.assert_close(found[1][name], gradient, atol=1e-4 * largest + 1e-7, rtol=1e-4, msg=name)


def test_a_gpu_reads_as_much_at_a_time_as_its_free_memory_takes(monkeypatch):
    device = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (70 * 2**30, 80 * 2**30))
    assert memory.values_at_once(device) == 2**28  # of 256 bytes, and at most all of the free memory
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (2**20, 80 * 2**30))
    assert memory.values_at_once(device) == memory.values_at_once(torch.device("cpu")) == memory.VALUES


@pytest.mark.parametrize("case", ["rrt_gld", "ames", "elvis"])
def test_what_a_missing_local_holds_does_not_matter(case):
    model, _ = published(case)
    shortlist = lists(case)
    mask = shortlist.candidates.mask.clone()
    mask[:, :, 7:] = False
    one, other = (
        replace(shortlist.candidates, mask=mask, local=torch.where(mask[..., None], shortlist.candidates.local, value))
        for value in (0.5, -3.0)
    )
    found = [model.rerank(replace(shortlist, candidates=c)).scores for c in (one, other)]
    torch.testing.assert_close(*found, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", MODELS)
def test_gradients_reach_every_weight_that_is_used(case):
    model = MODELS[case]()
    model(lists(case)).sum().backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == ({"decoder_pos_embed", "ratio"} if case == "r2former" else set())


def test_training_starts_as_in_the_published_code():
    torch.manual_seed(0)
    linear = lambda model: [m for m in model.modules() if isinstance(m, nn.Linear)]  # noqa: E731
    r2former = R2Former(64, depth=3, pair_depth=2, heads=2)
    rrt = [p for model in (MapRRT(64, **SMALL), RRT(64, 40, **SMALL)) for p in model.parameters() if p.ndim > 1]
    for weight in [*rrt, *(m.weight for m in linear(r2former))]:  # Glorot's, tables as well
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.8 * bound < weight.abs().max() <= bound
        assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.25)
    ames = linear(AMES(24, width=64, **{**SMALL, "heads": 2}))
    assert torch.cat([m.weight.flatten() for m in ames]).std().item() == pytest.approx(0.02, rel=0.1)
    assert not any(m.bias.any() for m in (*ames, *linear(r2former)))


@pytest.mark.parametrize("case", MODELS)
def test_the_loss_is_binary_cross_entropy_without_what_is_ignored(case):
    logits = MODELS[case]()(lists(case))
    labels = torch.tensor([[1, 0, 0, 1, -100, 0], [0, 0, -100, 0, 0, 1]])
    terms = [
        -torch.log(torch.sigmoid(x if y else -x))
        for x, y in zip(logits.flatten(), labels.flatten(), strict=True)
        if y >= 0
    ]
    torch.testing.assert_close(PairwiseReranker.loss(logits, labels), torch.stack(terms).mean())


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_glyphs(tmp_path_factory.mktemp("images"))


def run(images, out, method, *more):
    lines = [*QUICK, f"folder.path = '{images}'", *more]
    arguments = [part for line in lines for part in ("--set", line) if "query_attention" not in line]
    return main(["--gin", f"gin/peers/{method}.gin", *arguments, "--out", str(out)])


@pytest.mark.parametrize(
    "method",
    ["ames", *(pytest.param(name, marks=pytest.mark.slow) for name in ("rrt", "map_rrt", "r2former", "cvnet"))],
)
def test_learned_ones_are_trained_kept_and_loaded(images, tmp_path, method):
    sizes = ("compressed",) if method == "cvnet" else ("width", "depth", "heads")
    small = [f"{method}.{name} = {value}" for name, value in zip(sizes, (32, 1, 2), strict=False)]
    assert run(images, tmp_path / "run", method, *small) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["backbone"] == method and metrics["ensemble"] and metrics["parameters"] > 1000
    model = locore.load(tmp_path / "run")
    assert isinstance(model, PairwiseReranker) and sum(p.numel() for p in model.parameters()) == metrics["parameters"]
    again = [*small, f"Model.checkpoint = '{tmp_path / 'run'}'", "Reranking.ensemble = False"]
    assert run(images, tmp_path / "again", method, *again) == 0
    assert json.loads((tmp_path / "again" / "metrics.json").read_text())["reranked"] == metrics["reranked"]
    # By itself on the head of what it left of more, as a stage, it is itself on more.
    found = []
    for name, line in (("more", "candidates = 16"), ("twice", f"before = [('{tmp_path / 'run'}', 16)]")):
        assert run(images, tmp_path / name, method, *again, f"Experiment.{line}") == 0
        found.append(json.loads((tmp_path / name / "metrics.json").read_text())["reranked"])
    assert found[0] == found[1]
    if method != "r2former":  # which leaves the order as it is
        assert found[0] != metrics["reranked"]


@pytest.mark.parametrize("method", ["superglobal", "chamfer", "geometric"])
def test_those_without_training_run_as_they_are(images, tmp_path, method):
    assert run(images, tmp_path / "run", method, "Reranking.window = 4") == 0  # windows are for list-wise models
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["backbone"] == method and metrics["parameters"] == 0 and "training" not in metrics["seconds"]
    # Four matches, to which any transformation fits, are no more than chance.
    assert (metrics["reranked"] == metrics["global"]) == (method == "geometric")
    assert not (tmp_path / "run" / "model.safetensors").exists()
    with np.load(tmp_path / "run" / "rankings.npz") as lists:  # a random first one is right as often as any is
        assert metrics["chance"]["R@1"] == pytest.approx(100 * lists["all/right"].mean(), abs=4)
    (protocol,) = metrics["protocols"]
    row = tables.rows({method: [metrics]}, {}, protocol)[1]  # of a table with trained ones, too
    assert row[""] == method and "training s" not in row and row["ms a list"]


def test_another_setting_of_a_stage_is_another_run(capsys):
    found = []
    for beta in (0.1, 0.2):
        lines = ["Reranking.first_stages = [('superglobal', 48)]", f"superglobal.beta = {beta}"]
        arguments = [part for line in lines for part in ("--set", line)]
        assert main(["--gin", "gin/mamba.gin", *arguments, "--dry-run"]) == 0
        found.append(capsys.readouterr().out)
    assert found[0] != found[1]


def test_a_cascade_is_asked_for_by_name(images, tmp_path):
    # Chamfer on the head of what Chamfer left of more is Chamfer on more.
    twice = "Reranking.first_stages = [('chamfer', 16)]"
    asked = {"eight": [], "sixteen": ["Reranking.candidates = 16"], "twice": [twice]}
    found = {}
    for name, lines in asked.items():
        assert run(images, tmp_path / name, "chamfer", *lines) == 0
        found[name] = json.loads((tmp_path / name / "metrics.json").read_text())
    assert found["twice"]["reranked"] == found["sixteen"]["reranked"] != found["eight"]["reranked"]
    assert found["twice"]["oracle"] == found["sixteen"]["oracle"]


@pytest.mark.parametrize(
    ("method", "line", "words"),
    [
        ("chamfer", "Model.method = 'chamfre'", "did you mean 'chamfer'"),
        ("chamfer", "Model.checkpoint = 'runs/x'", "has no weights"),
        ("superglobal", "superglobal.beta_ = 1", "did you mean 'beta'"),
        ("chamfer", "Reranking.first_stages = [('superglobl', 16)]", "did you mean 'superglobal'"),
        ("chamfer", "Reranking.first_stages = [('ames', 16)]", "'ames' in Reranking.first_stages is neither"),
        ("chamfer", "Reranking.first_stages = ['superglobal']", "is not a stage"),
        (
            "chamfer",
            "Reranking.first_stages = [('superglobal', 16)]\nsuperglobal.beta = -1",
            "must be a number, at least 0",
        ),
        ("diffusion", "diffusion.descriptors = 'locals'", "did you mean 'local'"),
        ("superglobal", "superglobal.beta = -1", "beta = -1 must be a number, at least 0"),
        ("query_expansion", "query_expansion.alpha = 1e999", "alpha = inf must be"),
        ("geometric", "geometric.transformation = 'afine'", "did you mean 'affine'"),
        ("chamfer", "Reranking.alpha = 0.5\nReranking.temperature = 0.5", "gives no logits"),
        ("ames", "Reranking.alpha = 0.5", "go together"),
        ("ames", "Model.residual = -1.0", "must be above 0"),
        ("ames", "Model.matching = 'qury'", "did you mean 'query'"),
        ("ames", "Sampling.hard_negatives = True\nSampling.depth = 30", "leave Sampling.depth"),
        ("ames", "Reranking.window_order = 'end-to-strat'", "did you mean 'end-to-start'"),
        ("ames", "ames.heads = 5", "cannot be built"),
        (
            "rrt",
            f"Model.checkpoint = '{FOLDER / 'rrt_sop.weights.safetensors'}'",
            "set Model.method = 'map_rrt'",
        ),
        ("map_rrt", "Extractor.local_features = 'top'\nExtractor.top = 3", "square grid"),
    ],
)
def test_what_is_wrong_is_reported(images, tmp_path, capsys, method, line, words):
    assert run(images, tmp_path / "run", method, *line.split("\n")) == 2
    assert words in capsys.readouterr().err.strip().splitlines()[-1]


def test_a_grid_that_is_not_square_is_reported():
    with pytest.raises(ValueError, match="needs a square grid"):
        MapRRT(16, **SMALL)(Shortlist.random(1, 2, 7, 16, 8))


def test_r2former_reads_weights_without_an_upper_end_as_shares_of_the_largest():
    model, _ = published("r2former")
    shortlist = lists("r2former")
    both = [i.weight / i.weight.amax(-1, keepdim=True) for i in (shortlist.query, shortlist.candidates)]
    found = []
    for times in (1.0, 40.0):
        query, candidates = (
            replace(image, weight=times * weight)
            for image, weight in zip((shortlist.query, shortlist.candidates), both, strict=True)
        )
        found.append(model.rerank(replace(shortlist, query=query, candidates=candidates)).scores)
    torch.testing.assert_close(*found)
    other = model.rerank(replace(shortlist, query=replace(shortlist.query, weight=both[0] / 2)))
    assert not torch.allclose(other.scores, found[0], atol=1e-6)  # it is read at all
