"""Whether encoders learn that a candidate can be right because of another one."""

import json

import pytest
import torch

from experiments.probe import main
from locore.probes.synthetic_lists import EASY, LINKED, WRONG, above_wrong, synthetic_lists


def test_what_is_linked_shares_something_with_the_easy_one_alone():
    lists, kinds = synthetic_lists(50, torch.Generator().manual_seed(0))
    everything = torch.cat([lists.query.local[:, None], lists.candidates.local], dim=1)
    same = torch.einsum("bild,bjmd->bijlm", everything, everything) > 0.9
    shared = same.sum((3, 4)) * ~torch.eye(8, dtype=torch.bool)
    for row, each in enumerate(kinds):
        easy, linked = (1 + int((each == kind).nonzero()) for kind in (EASY, LINKED))
        pairs = {tuple(pair) for pair in shared[row].nonzero().tolist()}
        (wrong,) = {tuple(sorted(p)) for p in pairs} - {(0, easy), tuple(sorted((easy, linked)))}
        assert (0, easy) in pairs and (easy, linked) in pairs and len(pairs) == 6
        assert all(each[place - 1] == WRONG for place in wrong) and shared[row].max() == 1
    assert len({tuple(each.tolist()) for each in kinds}) > 20  # in any order


def test_chance_is_a_half_and_a_perfect_score_is_one():
    kinds = torch.tensor([[EASY, WRONG, LINKED, WRONG]])
    scores = torch.tensor([[3.0, 1.0, 1.0, 2.0]])
    assert above_wrong(scores, kinds, EASY).tolist() == [1.0]
    assert above_wrong(scores, kinds, LINKED).tolist() == [0.25]
    assert above_wrong(torch.zeros(1, 4), kinds, LINKED).tolist() == [0.5]


@pytest.mark.slow
def test_the_command_leaves_a_table_and_goes_on(tmp_path, capsys):
    arguments = ["--steps", "4", "--out", str(tmp_path / "results"), "--runs-folder", str(tmp_path / "runs")]
    assert main(["--backbones", "pairwise", "query_attention", *arguments]) == 0
    found = json.loads((tmp_path / "results" / "links.json").read_text())["backbones"]
    for name in ("pairwise", "query_attention"):  # candidates never meet there, whatever was learned
        assert found[name]["linked"]["low"] < 50 < found[name]["linked"]["high"]
    assert "| pairwise |" in (tmp_path / "results" / "links.md").read_text()
    assert (tmp_path / "results" / "links.png").stat().st_size > 5000
    weights = (tmp_path / "runs" / "pairwise-seed0" / "last.safetensors").read_bytes()
    assert main(["--backbones", "pairwise", *arguments]) == 0
    again = json.loads((tmp_path / "results" / "links.json").read_text())["backbones"]["pairwise"]
    assert again["linked"] == found["pairwise"]["linked"]
    assert (tmp_path / "runs" / "pairwise-seed0" / "last.safetensors").read_bytes() == weights
    assert main(["--backbones", "pairwize", *arguments]) == 2
    assert "did you mean 'pairwise'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_transformer_learns_links_and_a_pair_wise_encoder_does_not(tmp_path):
    arguments = ["--steps", "2000", "--out", str(tmp_path / "results"), "--runs-folder", str(tmp_path / "runs")]
    assert main(["--backbones", "transformer", "pairwise", *arguments]) == 0
    found = json.loads((tmp_path / "results" / "links.json").read_text())["backbones"]
    assert found["transformer"]["linked"]["low"] > 90
    assert found["pairwise"]["linked"]["low"] < 50 < found["pairwise"]["linked"]["high"]
