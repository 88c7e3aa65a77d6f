"""The list-wise re-ranker: order of candidates, lists of different length, files, scores."""

import pytest
import torch

import backbones
from backbones.registry import suggest
from locore.checkpoints import native
from locore.reranking import ListwiseReranker, Shortlist, pairwise
from locore.training.init import whiten
from locore.utils import safetensors

K, L = 6, 4


def reranker(encoder="pairwise", **options) -> ListwiseReranker:
    torch.manual_seed(0)
    settings = {"width": 32, "depth": 1, "heads": 2}
    return ListwiseReranker(encoder, 12, 20, max_positions=64, settings=settings, **options).eval()


def reorder(shortlist: Shortlist, order: torch.Tensor) -> Shortlist:
    return Shortlist(shortlist.similarities[:, order], shortlist.query, shortlist.candidates[:, order])


@pytest.mark.parametrize("encoder", ["pairwise", "transformer", "query_attention", "list_attention"])
def test_without_positions_the_order_of_candidates_makes_no_difference(encoder):
    model, shortlist, order = reranker(encoder, positions="none"), Shortlist.random(2, K, L, 12, 20), torch.randperm(K)
    scores = model.rerank(shortlist).scores
    torch.testing.assert_close(model.rerank(reorder(shortlist, order)).scores, scores[:, order], atol=1e-5, rtol=0)


@pytest.mark.parametrize("encoder", ["longformer", "mamba", "rwkv", "transformer", "list_attention"])
def test_a_shorter_list_in_a_batch_scores_as_it_does_alone(encoder):
    torch.manual_seed(0)
    model = ListwiseReranker(encoder, 12, 20, max_positions=64, settings={"width": 32, "depth": 1, "heads": 2}).eval()
    full = Shortlist.random(2, K, L, 12, 20)
    present = torch.arange(K) < torch.tensor([[K], [K - 2]])
    together = model.rerank(Shortlist(full.similarities, full.query, full.candidates, present))
    assert together.scores[1, -2:].isinf().all() and set(together.order[1, -2:].tolist()) == {K - 2, K - 1}
    if encoder != "rwkv":  # its decay is per list length, which the layout tells
        alone = Shortlist(full.similarities[1:, : K - 2], full.query[1:], full.candidates[1:, : K - 2])
        torch.testing.assert_close(together.scores[1:, : K - 2], model.rerank(alone).scores, atol=1e-5, rtol=0)


def test_scores_are_what_their_names_say():
    model, logits = reranker(), torch.randn(2, 1 + K, L + 2, 2)
    tokens = logits[:, 1:, :-1, 1]
    expected = {
        "mean": tokens.mean(-1),
        "sum": tokens.sum(-1),
        "first": tokens[..., 0],
        "last": tokens[..., -1],
        "product": tokens.prod(-1),
    }
    for name, value in expected.items():
        model.score = name
        torch.testing.assert_close(model.scores(logits), value)


def test_the_loss_leaves_the_query_out_and_counts_sep():
    logits, labels = torch.randn(2, 1 + K, L + 2, 2), torch.randint(0, 2, (2, K))
    loss = ListwiseReranker.loss(logits, labels)
    logits[:, 0] += 100
    assert ListwiseReranker.loss(logits, labels) == loss
    logits[:, 1:, -1] += torch.tensor([3.0, 0.0])
    assert ListwiseReranker.loss(logits, labels) != loss


@pytest.mark.parametrize("method", ["listwise", "rrt", "map_rrt", "ames"])
def test_whitening_makes_the_training_tokens_white(method):
    torch.manual_seed(0)
    settings = {"width": 32, "depth": 1, "heads": 2}
    model = (
        ListwiseReranker("pairwise", 12, 20, settings=settings)
        if method == "listwise"
        else pairwise.create(method, "mini", 12, 20, settings)
    )
    descriptors = Shortlist.random(400, 4, L, 12, 20).candidates
    projections = model.projections(descriptors)
    whiten(projections, share=1)
    assert len(projections) == (2 if method in ("listwise", "rrt") else 1)
    for project, rows in projections:
        tokens = project(rows).flatten(0, -2)
        spectrum = torch.linalg.eigvalsh(tokens.T.cov()).flip(0)[: rows.shape[-1]]
        torch.testing.assert_close(tokens.mean(0), torch.zeros(32), atol=1e-4, rtol=0)
        assert spectrum.max() / spectrum.min() < 1.3


def test_scaling_keeps_inner_products():
    torch.manual_seed(0)
    model = ListwiseReranker("pairwise", 12, 20, settings={"width": 32, "depth": 1, "heads": 2})
    descriptors = Shortlist.random(400, 4, L, 12, 20).candidates
    whiten(model.projections(descriptors), share=0)
    rows = descriptors.local.flatten(0, -2)[:50]
    centred, tokens = rows - descriptors.local.flatten(0, -2).mean(0), model.embedding.local(rows)
    before, after = centred @ centred.T, tokens @ tokens.T
    torch.testing.assert_close(after, before * (after.diagonal().sum() / before.diagonal().sum()), atol=1e-3, rtol=1e-3)


def test_saved_and_loaded_it_scores_the_same(tmp_path):
    model, shortlist = reranker("mamba"), Shortlist.random(2, K, L, 12, 20)
    native.save(model, tmp_path / "model.safetensors")
    torch.testing.assert_close(native.load(tmp_path).rerank(shortlist).scores, model.rerank(shortlist).scores)


def test_it_reads_as_many_local_descriptors_as_it_is_asked_to(tmp_path):
    model, shortlist = reranker("mamba", positions="none"), Shortlist.random(2, K, L, 12, 20)
    native.save(model, tmp_path / "model.safetensors")
    fewer = native.load(tmp_path, kept_locals=2)
    assert fewer.embedding.kept_places(shortlist).shape == (2, 1 + K, 2)
    model.embedding.kept_locals = 2
    torch.testing.assert_close(fewer.rerank(shortlist).scores, model.rerank(shortlist).scores)
    native.save(fewer, tmp_path / "fewer" / "model.safetensors")
    torch.testing.assert_close(native.load(tmp_path / "fewer").rerank(shortlist).scores, fewer.rerank(shortlist).scores)
    with pytest.raises(ValueError, match="leave out heads"):
        native.load(tmp_path, kept_locals=2, heads=4)
    with pytest.raises(ValueError, match="must be at least 1"):
        native.load(tmp_path, kept_locals=0)


def test_what_a_model_cannot_be_or_read_is_reported(tmp_path):
    model = reranker("mamba")
    native.save(model, tmp_path / "model.safetensors")
    assert next(native.load(tmp_path, "bfloat16").parameters()).dtype == torch.bfloat16
    for dtype in ("bfloat61", "int8", torch.int8, "nn"):
        with pytest.raises(ValueError, match="must be a floating-point type of torch"):
            native.load(tmp_path, dtype)
    for prefix in ("", "model."):  # what a training resumes from
        safetensors.write(tmp_path / "last.safetensors", {f"{prefix}{n}": v for n, v in model.state_dict().items()})
        with pytest.raises(ValueError, match="is the state of a training; load its folder"):
            native.load(tmp_path / "last.safetensors")
    for other in (Shortlist.random(1, K, L, 13, 20), Shortlist.random(1, K, L, 12, 21)):
        with pytest.raises(ValueError, match=r"The re-ranker reads descriptors of (local|global)_dim"):
            model.rerank(other)
    with pytest.raises(ValueError, match="The re-ranker reads descriptors of local_dim 12, these have 13"):
        pairwise.create("rrt", "mini", 12, 20, settings={}).rerank(Shortlist.random(1, K, L, 13, 20))


def test_it_is_kept_in_a_folder_of_the_hub(tmp_path):
    model, shortlist = reranker("mamba"), Shortlist.random(2, K, L, 12, 20)
    model.save_pretrained(tmp_path / "kept")
    again = ListwiseReranker.from_pretrained(tmp_path / "kept")
    torch.testing.assert_close(again.rerank(shortlist).scores, model.rerank(shortlist).scores)
    assert not again.training and again.encoder.hidden_size == model.encoder.hidden_size


@pytest.mark.parametrize("encoder", backbones.available())
def test_in_bfloat16_it_scores_nearly_the_same(tmp_path, encoder):
    native.save(reranker(encoder), tmp_path / "model.safetensors")
    exact, half = native.load(tmp_path), native.load(tmp_path, torch.bfloat16)
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    shortlist = Shortlist.random(2, K, L, 12, 20)
    difference = half.rerank(shortlist).scores - exact.rerank(shortlist).scores
    assert difference.abs().max() < 0.05


@pytest.mark.parametrize("content", [None, b"", b"nonsense" * 100])
def test_a_missing_or_damaged_model_is_reported_in_one_sentence(tmp_path, content):
    if content is not None:
        (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        native.load(tmp_path)


def test_unknown_scales_and_scores_that_are_nan_are_reported():
    model, shortlist = reranker(scales=3), Shortlist.random(2, K, L, 12, 20)
    shortlist.candidates.scale[1, 2] = 3
    with pytest.raises(ValueError, match="have scales 0 to 3, and the re-ranker knows 0 to 2"):
        model.rerank(shortlist)
    shortlist.candidates.scale[1, 2], shortlist.query.local[0] = 2, torch.inf
    with pytest.raises(ValueError, match="scores of a re-ranker are not numbers"):
        model.rerank(shortlist)


def test_wrong_settings_name_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'segment'"):
        reranker(positions="segments")
    with pytest.raises(ValueError, match="did you mean 'mean'"):
        reranker(score="meen")
    with pytest.raises(ValueError, match="has no setting 'widht'; did you mean 'width'"):
        ListwiseReranker("mamba", 12, 20, settings={"widht": 3})
    with pytest.raises(ValueError, match="needs 30 positions, but 10 are learned"):
        ListwiseReranker("mamba", 12, 20, max_positions=10).rerank(Shortlist.random(1, 4, 4, 12, 20))
    assert suggest("x", ["abc"]) == ". Known: abc."
