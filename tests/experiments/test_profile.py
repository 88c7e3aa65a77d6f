"""The profile: what it counts, the peers' agreement, and what is wrong with its arguments."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backbones import ListLayout, create
from experiments import profile
from experiments._config import read_experiment
from experiments._profiling import peers
from experiments._profiling.side import Side
from experiments._profiling.worker import _reranker, flops
from experiments.profile import _exponent, main
from locore.reranking import Shortlist
from locore.reranking.reranker import rerankers
from locore.reranking.storage import reads_locals

SMALL = ["--passes", "1", "--warm-up", "1", "--json"]


def test_flops_of_a_longformer_layer_are_those_counted_by_hand():
    layout, width, inner, window = ListLayout(11, 25), 32, 64, 16
    encoder = create("longformer", width=width, depth=1, heads=2, window=window, expansion=inner / width).eval()
    tokens, mask = torch.randn(1, layout.tokens, width), torch.ones(1, layout.tokens, dtype=torch.bool)
    T, G, reach = layout.tokens, 11 + 24, window // 2
    with torch.no_grad():
        counted = flops(lambda: encoder(tokens, layout, mask))
    linear = 2 * T * width * (6 * width + 2 * inner) + 2 * G * width * width  # q, k, v, two global ones and the output
    size = G  # queries a tile
    seen = sum(min(start + size, T) - start for start in range(0, T, size) for _ in range(G)) + sum(
        (min(start + size, T) - start) * (min(start + size + reach, T) - max(start - reach, 0))
        for start in range(0, T, size)
    )
    attention = 4 * width * (seen + G * T)  # two products, over the blocks' keys and for the global rows
    assert counted == linear + attention


def test_flops_of_the_scans_are_counted():
    layout = ListLayout(5, 4)
    encoder = create("mamba", width=32, depth=1, heads=2, state=4, mixer_expansion=1, query_attention_layers=[])
    tokens, mask = torch.randn(2, 20, 32), torch.ones(2, 20, dtype=torch.bool)
    with torch.no_grad():
        counted = flops(lambda: encoder(tokens, layout, mask))
    rank = 1
    products = 2 * 40 * (32 * 64 + 32 * 32) + 2 * 2 * 40 * (32 * (rank + 8) + rank * 32)
    assert counted == products + 9 * 2 * 40 * 32 * 4


def test_flops_of_a_transformer_of_pytorchs_are_those_counted_by_hand():
    pairs, local_count, width, inner, depth = 6, 7, 32, 64, 2
    model = rerankers.create(
        "rrt", local_dim=width, global_dim=24, width=width, depth=depth, heads=2, inner=inner
    ).eval()
    shortlist = Shortlist.random(1, pairs, local_count, width, 24)
    T = 2 * (2 + local_count)
    layer = 2 * T * width * (4 * width + 2 * inner) + 4 * T * T * width
    around = 2 * 2 * 24 * width + 2 * width  # both images' global descriptors, and the classifier
    assert flops(lambda: model.rerank(shortlist)) == pairs * (depth * layer + around)


@pytest.mark.parametrize("name", ["longformer", "mamba"])
def test_a_peer_from_transformers_computes_the_same(name):
    torch.manual_seed(0)
    encoder, layout = create(name, width=48, depth=2, heads=2), ListLayout(7, 9)
    tokens = torch.randn(1, layout.tokens, 48)
    expected = peers.peer("transformers", encoder, layout)(tokens)
    torch.testing.assert_close(peers.ours(encoder, layout)(tokens), expected, atol=1e-5, rtol=1e-5)


def test_a_peer_of_rwkv_runs_in_the_same_shape():
    encoder, layout = create("rwkv", width=32, depth=1, heads=2), ListLayout(5, 4)
    tokens = torch.randn(1, layout.tokens, 32)
    assert peers.peer("transformers", encoder, layout)(tokens).shape == tokens.shape


@pytest.mark.slow
def test_a_comparison_says_all_that_it_measured(capsys):
    gin = ["--gin", "gin/longformer.gin", "--set", "longformer.depth = 1"]
    assert main([*gin, "--against", "transformers", "--layout", "11x5", *SMALL]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["max_abs_diff"] <= 1e-4
    assert result["speedup"] == pytest.approx(result["peer_s"] / result["ours_s"], rel=0.2)
    keys = ("case", "ours_s", "peer_s", "speedup", "speedup_same_allocator", "limit_s", "ours_mb", "peer_mb")
    assert set(keys) <= set(result)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chamfer", []),
        *(
            pytest.param(name, options, marks=pytest.mark.slow)
            for name, options in (
                ("ames", []),
                ("superglobal", ["--one-by-one"]),
                ("cvnet", []),
                ("cvnet", ["--one-by-one"]),
            )
        ),
    ],
)
def test_every_re_ranker_has_its_costs(capsys, name, options):
    layout = ["--layout", "27x5", "--local-dim", "16", *options]
    assert main(["--gin", f"gin/peers/{name}.gin", *layout, *SMALL]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["case"].startswith(name) and result["latency_s"] > 0
    assert (result["parameters"] > 0) == (result["gflops"] is not None) == (name in ("ames", "cvnet"))


def test_parameters_are_those_of_the_row_and_not_of_the_list():
    spec = {"gin": ["gin/longformer.gin"], "widths": (20, 12), "batch": 1, "whole": False}
    spec |= {"one_by_one": False, "precision": "float32"}
    found = []
    for rows in (500, 600):
        _, about, _ = _reranker({**spec, "set": [f"Model.min_positions = {rows}"]}, ListLayout(6, 3))
        found.append(about["parameters"])
    assert found[1] - found[0] == 100 * create("longformer").hidden_size


def test_what_reads_local_descriptors_is_found_out():
    torch.manual_seed(0)
    shortlist = Shortlist.random(2, 6, 49, 16, 24)
    reads = {name: reads_locals(rerankers.create(name), shortlist) for name in ("chamfer", "geometric", "superglobal")}
    assert reads == {"chamfer": True, "geometric": True, "superglobal": False}


@pytest.mark.slow
def test_lengths_are_fitted_and_drawn(capsys, tmp_path):
    gin, picture = ["--gin", "gin/mamba.gin", "--set", "query_attention.depth = 1"], tmp_path / "lengths.png"
    lengths = ["--lengths", "5000", "20000", "--backbones", "query_attention", "--picture", str(picture)]
    assert main([*gin, *lengths, *SMALL]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for points in (result[way]["query_attention"] for way in ("more images", "longer blocks")):
        assert len(points["seconds"]) == 2 and points["tokens"] == pytest.approx([5_000, 20_000], rel=0.01)
        tensor = np.array(points["tokens"]) * 192 * 4 / 2**20  # as long as the list
        mb = np.array(points["mb"])  # what a pass holds: a few of these, and none of what the imports take
        assert (mb > 2 * tensor).all() and (mb < 20 * tensor).all()
    assert picture.stat().st_size > 1000
    assert _exponent([10, 20, 40], [3, 12, 48]) == 2


@pytest.mark.slow
def test_a_measured_process_that_is_killed_is_reported():
    spec = {"backbone": "query_attention", "size": "mini", "settings": {}, "layout": (5, 4), "batch": 1}
    with Side(**spec, backward=False, allocator=True, side="encoder") as side:
        side.run()
        side._process.kill()
        with pytest.raises(ValueError, match="ended with exit status -9"):
            side.run()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--layout", "1x1"], "3 tokens or more"),
        (["--layout", "5"], "such as 50x101"),
        (["--passes", "0"], "at least 1"),
        (["--warm-up", "-1"], "at least 0"),
        (["--lengths", "few"], "at least 1"),
    ],
)
def test_arguments_that_are_not_numbers_are_reported(capsys, arguments, words):
    with pytest.raises(SystemExit):
        main(["--gin", "gin/longformer.gin", *arguments])
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--against", "tranformers"], "did you mean 'transformers'"),
        (["--against", "mambapy"], "has no longformer"),
        (["--lengths", "300"], "two lengths or more"),
        (["--lengths", "300", "600", "--picture", "/none/lengths.png"], "give another --picture"),
        (["--lengths", "300", "600", "--backbones", "manba"], "did you mean 'mamba'"),
        (["--backward"], "--backward goes with"),
        (["--one-by-one", "--lengths", "300", "600"], "--one-by-one goes without"),
        (["--gin", "gin/peers/ames.gin", "--against", "transformers"], "'ames' has none"),
        (["--backbones", "mamba"], "--backbones goes with"),
    ],
)
def test_wrong_arguments_get_one_sentence(capsys, arguments, words):
    assert main(["--gin", "gin/longformer.gin", "--layout", "5x3", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error


def test_the_supplements_table_has_every_row_and_says_what_failed(tmp_path, monkeypatch, capsys):
    asked = {}

    def cost(_, options):
        asked["+".join(Path(file).stem for file in options.gin)] = options
        if "rrt" in options.gin[0]:
            raise ValueError("it broke")
        one = {
            "parameters": 2_500_000,
            "gflops": 3.0,
            "latency_mean_s": 0.5,
            "latency_deviation_s": 0.25,
            "peak_mb": 40,
        }
        return one | ({"parameters": 0, "gflops": None} if "geometric" in options.gin[0] else {})

    monkeypatch.setattr(profile, "_cost", cost)
    assert main(["--table", str(tmp_path / "table.md"), "--passes", "3"]) == 0
    page = (tmp_path / "table.md").read_text()
    assert page in capsys.readouterr().out and "3 passes after 10" in page
    assert "| LOCORE-base | 2.50 | 3.0 | 6.0 | 500.0 ± 250.0 | 40 |" in page
    assert "| GV | 0.00 |  |  | 500.0 ± 250.0 | 40 |" in page and "| RRT | failed: it broke |" in page
    assert asked["cvnet+base"].one_by_one and asked["cvnet+base"].layout == (1026, 101)
    assert not asked["ames+base"].one_by_one and asked["geometric"].set == ["geometric.iterations = 1000"]
    for name, options in asked.items():  # each is a configuration that can be read
        assert read_experiment(options.gin, options.set, 0), name
    assert main(["--table", "table.md", "--gin", "gin/mamba.gin"]) == 2
    assert main([]) == 2 and "or --table" in capsys.readouterr().err
