"""The published LOCORE's own outputs on small random inputs, reproduced to 1e-5.

LOCORE_GOLDEN points these tests at another folder of such files.
"""

import json
import shutil

import pytest
import torch
from golden_files import FOLDER
from safetensors.torch import load_file, save_file

import locore
from locore.checkpoints.published import from_published
from locore.descriptors import Descriptors
from locore.reranking import ListwiseReranker, Shortlist

CASES = sorted(p.stem for p in FOLDER.glob("locore_*.json"))
SCORES = {"sum": "max-sum", "first": "max-start", "last": "max-end", "product": "max-prod"}


def build(case: str) -> tuple[ListwiseReranker, Shortlist, dict[str, torch.Tensor]]:
    facts = json.loads((FOLDER / f"{case}.json").read_text())
    tensors = load_file(FOLDER / f"{case}.io.safetensors")
    options = facts["options"]
    model = ListwiseReranker(
        "longformer",
        facts["local_dim"],
        facts["global_dim"],
        max_positions=facts["max_position_embeddings"] - 2,
        settings={
            "width": facts["hidden"],
            "depth": facts["layers"],
            "heads": facts["heads"],
            "window": facts["window"],
            "expansion": 4,
        },
        global_token=facts["global_token"],
        positions={"no": "none"}.get(facts["pos_type"], facts["pos_type"]),
        force_projection=options.get("force_linear", False),
        bottleneck=options.get("bottleneck_dim"),
        activation=options.get("linear_activation", "gelu"),
    )
    model.load_state_dict(from_published(load_file(FOLDER / f"{case}.weights.safetensors")))

    def side(name: str) -> Descriptors:
        local = tensors[f"{name}_local_features"]
        global_matrix = tensors.get(f"{name}_global_features", torch.zeros(*local.shape[:-2], 1, facts["global_dim"]))
        return Descriptors(
            global_descriptor=global_matrix.squeeze(-2),
            local=local,
            position=torch.zeros(*local.shape[:-1], 2),
            scale=tensors[f"{name}_local_scales"],
            mask=tensors[f"{name}_local_mask"] == 0,
            weight=torch.zeros(local.shape[:-1]),
        )

    query, candidates = side("query"), side("gallery")
    return model.eval(), Shortlist(torch.zeros(local_shape(candidates)), query, candidates), tensors


def local_shape(descriptors: Descriptors) -> torch.Size:
    return descriptors.local.shape[:2]


def test_there_are_cases():
    assert len(CASES) >= 5


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_the_published_code(case):
    model, shortlist, expected = build(case)
    with torch.no_grad():
        hidden = model.encode(shortlist)
        logits = model.head(hidden)
    torch.testing.assert_close(hidden.flatten(1, 2), expected["hidden"], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits.flatten(1, 2), expected["logits"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.loss(logits, expected["positive_mask"])[None], expected["loss"], atol=1e-5, rtol=0)
    for ours, published in SCORES.items():
        model.score = ours
        torch.testing.assert_close(model.scores(logits), expected[f"score.{published}"], atol=1e-5, rtol=0)
    model.score = "mean"
    torch.testing.assert_close(
        model.scores(logits) * (logits.shape[2] - 1), expected["score.max-sum"], atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("case", CASES)
def test_a_published_folder_loads_by_one_call_and_scores_the_same(case, tmp_path):
    facts = json.loads((FOLDER / f"{case}.json").read_text())
    shutil.copy(FOLDER / f"{case}.weights.safetensors", tmp_path / "model.safetensors")
    _, shortlist, expected = build(case)
    model = locore.load(
        tmp_path,
        heads=facts["heads"],
        window=facts["window"],
        positions={"no": "none"}.get(facts["pos_type"], facts["pos_type"]),
        global_token=facts["global_token"],
    )
    torch.testing.assert_close(model.rerank(shortlist).scores, expected["score.max-sum"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("scale_encoder.weight"), "has no embedding.scale.weight"),
        (lambda t: t.pop("language_model.classifier.bias"), "missing: head.bias"),
        (lambda t: t.update({"scale_encoder.bias": torch.zeros(3)}), "left over: embedding.scale.bias"),
        (lambda t: t.update({"language_model.classifier.bias": torch.zeros(3)}), r"head.bias \(3,\) for \(2,\)"),
        (
            lambda t: t.update({"word_embeddings": torch.zeros(3)}),
            "These are tensors of no re-ranker that is known here: word_embeddings",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_listed(change, words, tmp_path):
    tensors = load_file(FOLDER / "locore_landmark.weights.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=words):
        locore.load(tmp_path, heads=4, window=16)
