"""A re-ranker that starts from a language model computes what transformers computes with the same weights."""

import json

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LongformerConfig, LongformerModel, RobertaConfig, RobertaForMaskedLM

from backbones import ListLayout
from experiments.run import main
from locore.checkpoints.language_models import start_from
from locore.reranking import ListwiseReranker

SIZES = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 20, "layer_norm_eps": 1e-5}
LEARNED = 40  # positions of the language model
LAYOUT = ListLayout(block=5, images=4)


@pytest.fixture
def longformer(tmp_path):
    torch.manual_seed(0)
    config = LongformerConfig(
        **SIZES, num_hidden_layers=3, attention_window=[8, 8, 8], max_position_embeddings=LEARNED + 2
    )
    model = LongformerModel(config).eval()
    model.save_pretrained(tmp_path)
    return model


@pytest.fixture
def roberta(tmp_path):
    torch.manual_seed(0)
    config = RobertaConfig(**SIZES, num_hidden_layers=2, max_position_embeddings=LEARNED + 2, eos_token_id=3)
    model = RobertaForMaskedLM(config).eval()
    model.save_pretrained(tmp_path)
    return model


def reranker(depth=2, window=8, max_positions=100, width=32):
    torch.manual_seed(1)
    settings = {"width": width, "depth": depth, "heads": 2, "window": window, "expansion": 2}
    return ListwiseReranker("longformer", 16, 24, max_positions, settings=settings).eval()


def test_the_first_layers_of_a_longformer(longformer, tmp_path):
    model, other = reranker(depth=2), reranker(depth=2)
    start_from(model, tmp_path)
    tokens = torch.randn(2, LAYOUT.tokens, 32)
    global_ = LAYOUT.sep(tokens.device)
    global_[LAYOUT.query] = True
    longformer.encoder.layer = longformer.encoder.layer[:2]
    padding = -LAYOUT.tokens % 8
    padded, codes = F.pad(tokens, (0, 0, 0, padding)), F.pad(1.0 + global_, (0, padding)).expand(2, -1)
    with torch.no_grad():  # codes: 0 masked, 1 local, 2 global
        expected = longformer.encoder(padded, attention_mask=(codes - 1) * 10_000.0, padding_len=padding)[0]
        found = model.encoder(tokens, LAYOUT, torch.ones(tokens.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(found, expected[:, : LAYOUT.tokens], atol=1e-5, rtol=0)
    words = longformer.embeddings.word_embeddings.weight
    assert torch.equal(model.embedding.sep, words[2]) and torch.equal(model.embedding.pad, words[1])
    assert torch.equal(model.head.weight, other.head.weight)  # what a language model has not, stays


def test_positions_are_interpolated(longformer, tmp_path):
    model = reranker(max_positions=100)
    start_from(model, tmp_path)
    learned = longformer.embeddings.position_embeddings.weight.detach().numpy()[2:]
    expected = [np.interp(np.linspace(0, LEARNED - 1, 100), np.arange(LEARNED), column) for column in learned.T]
    np.testing.assert_allclose(model.embedding.position.weight.detach().numpy()[2:], np.array(expected).T, atol=1e-5)


def test_a_roberta_whose_window_is_the_list_is_that_roberta(roberta, tmp_path):
    model = reranker(depth=2, window=64)
    start_from(model, tmp_path)
    tokens = torch.randn(2, LAYOUT.tokens, 32)
    with torch.no_grad():
        expected = roberta.roberta.encoder(tokens)[0]
        found = model.encoder(tokens, LAYOUT, torch.ones(tokens.shape[:2], dtype=torch.bool))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    positions, learned = model.embedding.position.weight[2:], roberta.roberta.embeddings.position_embeddings.weight[2:]
    assert torch.equal(positions[:LEARNED], learned) and torch.equal(positions[LEARNED : 2 * LEARNED], learned)
    assert torch.equal(model.embedding.sep, roberta.roberta.embeddings.word_embeddings.weight[3])


def test_an_old_file_of_torch_is_read_too(roberta, tmp_path):
    (tmp_path / "model.safetensors").unlink()
    torch.save(roberta.state_dict(), tmp_path / "pytorch_model.bin")
    model = reranker()
    start_from(model, tmp_path)
    assert torch.equal(model.embedding.norm.weight, roberta.roberta.embeddings.LayerNorm.weight)


def test_what_does_not_fit_is_reported(roberta, tmp_path):
    with pytest.raises(ValueError, match=r"missing: encoder\.layers\.2"):
        start_from(reranker(depth=3), tmp_path)
    with pytest.raises(ValueError, match="of another shape: "):
        start_from(reranker(width=64), tmp_path)
    with pytest.raises(ValueError, match="Only the backbone 'longformer' can start"):
        start_from(ListwiseReranker("mamba", 16, 24), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for said, words in (([], "has no settings"), ({**config, "sep_token_id": 10**6}, "names tokens 1000000 and")):
        (tmp_path / "config.json").write_text(json.dumps(said))
        with pytest.raises(ValueError, match=words):
            start_from(reranker(), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="is damaged"):
        start_from(reranker(), tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"is missing\. Download config\.json"):
        start_from(reranker(), tmp_path)


def test_an_experiment_starts_from_it(longformer, tmp_path, capsys):
    sizes = ["width = 32", "depth = 1", "heads = 2", "window = 8", "expansion = 2"]
    settings = [*(f"longformer.{line}" for line in sizes), f"Model.language_model = '{tmp_path}'"]
    arguments = [part for line in settings for part in ("--set", line)]
    assert main(["--gin", "gin/longformer.gin", "--dry-run", *arguments]) == 0
    assert (
        main(["--gin", "gin/longformer.gin", "--dry-run", *arguments[:-2], "--set", "Model.language_model = 'no'"]) == 2
    )
    assert "There is no language model in 'no'" in capsys.readouterr().err
