"""Encoders against other people's implementations of the same thing, with the same weights."""

import pytest
import torch
from transformers import LongformerConfig, LongformerModel, MambaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.rwkv.modeling_rwkv import rwkv_linear_attention_cpu

from backbones import ListLayout, available, create
from backbones.mamba import Direction, mix
from backbones.ops.wkv import wkv
from locore.checkpoints.published import from_published


@pytest.mark.parametrize("layout", [ListLayout(11, 9), ListLayout(7, 30)])
def test_longformer_is_transformers_longformer(layout):
    torch.manual_seed(0)
    config = LongformerConfig(
        vocab_size=3,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        attention_window=16,
        layer_norm_eps=1e-5,
    )
    theirs = LongformerModel(config, add_pooling_layer=False).eval().encoder
    ours = create("longformer", width=32, depth=2, heads=4, window=16, expansion=2).eval()
    published = {f"language_model.longformer.encoder.{n}": v for n, v in theirs.state_dict().items()}
    ours.load_state_dict({n.removeprefix("encoder."): v for n, v in from_published(published).items()})

    tokens = torch.randn(2, layout.tokens, 32)
    mask = torch.rand(2, layout.tokens) > 0.2
    mask |= layout.sep()
    padding = -layout.tokens % 16
    padded = torch.nn.functional.pad(tokens, (0, 0, 0, padding))
    global_ = layout.sep()
    global_[layout.query] = True
    codes = torch.nn.functional.pad(mask * (1.0 + global_), (0, padding))  # 0 masked, 1 local, 2 global
    with torch.no_grad():
        expected = theirs(padded, attention_mask=(codes - 1) * 10_000.0, padding_len=padding).last_hidden_state
        torch.testing.assert_close(ours(tokens, layout, mask), expected[:, : layout.tokens], atol=1e-5, rtol=1e-5)


def test_one_direction_of_mamba_is_transformers_mixer():
    torch.manual_seed(0)
    theirs = MambaMixer(
        MambaConfig(hidden_size=24, state_size=5, conv_kernel=4, expand=2, time_step_rank=2, use_bias=False),
        layer_idx=0,
    )
    ours = Direction(48, state=5, kernel=4)
    ours.load_state_dict({n: v for n, v in theirs.state_dict().items() if "in_proj" not in n and "out_proj" not in n})
    tokens = torch.randn(2, 37, 24)
    with torch.no_grad():
        x, gate = theirs.in_proj(tokens).chunk(2, dim=-1)
        mixed = mix([ours], x, None)
        output = theirs.out_proj(mixed * torch.nn.functional.silu(gate))
        torch.testing.assert_close(output, theirs(tokens), atol=1e-5, rtol=1e-5)


def test_the_back_direction_is_the_front_direction_of_the_reversed_list():
    torch.manual_seed(0)
    one, other, tokens = Direction(32, state=4, kernel=4), Direction(32, state=4, kernel=4), torch.randn(2, 20, 32)
    ahead, both, turned = mix([one], tokens, None), mix([one, other], tokens, None), mix([other], tokens.flip(1), None)
    torch.testing.assert_close(both, ahead + turned.flip(1), atol=1e-5, rtol=1e-5)


def test_causal_wkv_is_transformers_rwkv4():
    torch.manual_seed(0)
    decay, bonus, key, value = torch.randn(8), torch.randn(8), torch.randn(2, 40, 8), torch.randn(2, 40, 8)
    expected, _ = rwkv_linear_attention_cpu(decay, bonus, key, value)
    torch.testing.assert_close(wkv(decay.exp(), bonus, key, value, causal=True), expected, atol=1e-5, rtol=1e-5)


def test_list_attention_is_torchs_attention_before_query_attention():
    torch.manual_seed(0)
    layout, ours, rest = (
        ListLayout(5, 6),
        create("list_attention", width=24, depth=1, heads=2, expansion=2),
        create("query_attention", width=24, depth=1, heads=2, expansion=2),
    )
    tokens, mask = torch.randn(2, layout.tokens, 24), torch.rand(2, layout.tokens) > 0.2
    mask |= layout.sep()
    first = ours.layers[0]
    rest.load_state_dict(
        {n.replace("layers.1.", "layers.0."): v for n, v in ours.state_dict().items() if ".0." not in n}
    )
    theirs = torch.nn.MultiheadAttention(24, 2, batch_first=True)
    projections = [getattr(first.attention, name) for name in ("query", "key", "value")]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([p.weight for p in projections]))
        theirs.in_proj_bias.copy_(torch.cat([p.bias for p in projections]))
        theirs.out_proj.load_state_dict(first.attention.output.state_dict())
        normed = first.norm(tokens)
        expected = rest(tokens + theirs(normed, normed, normed, key_padding_mask=~mask)[0], layout, mask)
        torch.testing.assert_close(ours(tokens, layout, mask), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", available())
def test_recomputing_layers_gives_the_same_gradients(name):
    torch.manual_seed(0)
    layout, encoder = ListLayout(5, 6), create(name, width=24, depth=2, heads=2).train()
    tokens, mask = torch.randn(2, layout.tokens, 24), torch.ones(2, layout.tokens, dtype=torch.bool)
    mask[0, 7] = False
    gradients = []
    for encoder.gradient_checkpointing in (False, True):
        encoder.zero_grad()
        encoder(tokens, layout, mask).square().sum().backward()
        gradients.append([p.grad.clone() for p in encoder.parameters() if p.grad is not None])
    torch.testing.assert_close(*gradients, atol=1e-5, rtol=1e-4)


def test_every_fourth_layer_of_a_hybrid_attends_to_the_list():
    # Each is followed by query attention.
    layers = [type(layer).__name__ for layer in create("hybrid", depth=8).layers][::2]
    assert layers == 2 * [*(3 * ["BidirectionalDeltaNet"]), "ListAttention"]
