"""Compiled kernels against their definitions in plain tensors, forward and backward."""

import numpy as np
import pytest
import torch
from numba import prange
from op_inputs import conv_inputs, scan_inputs, window_inputs, wkv_inputs
from torch.nn.attention.flex_attention import flex_attention

from backbones import ListLayout, create
from backbones.ops import _numerics as numerics
from backbones.ops.causal_conv import causal_conv, causal_conv_reference
from backbones.ops.selective_scan import SKIPPED, selective_scan, selective_scan_reference
from backbones.ops.window_attention import Window, window_attention, window_attention_reference
from backbones.ops.window_attention.cuda import block_mask
from backbones.ops.wkv import LOWEST, wkv, wkv_reference


def same(ours, reference, inputs, tolerance):
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(reference)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(reference, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, float(b.abs().max())), rtol=tolerance)


def compiled_types(float32_tolerance):
    """float64 is slow: numba compiles a kernel anew for each type, half a minute for all of them."""
    exact = pytest.param(torch.float64, 1e-10, marks=pytest.mark.slow)
    return pytest.mark.parametrize(("dtype", "tolerance"), [exact, (torch.float32, float32_tolerance)])


BOTH_TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
DIRECTIONS = pytest.mark.parametrize("directions", [1, 2])


@DIRECTIONS
@compiled_types(2e-5)
def test_selective_scan_is_its_definition(dtype, tolerance, directions):
    inputs = scan_inputs(dtype, directions)
    same(selective_scan(*inputs), selective_scan_reference(*inputs), inputs, tolerance)


@pytest.mark.slow
@DIRECTIONS
def test_selective_scan_gradients(directions):
    inputs = scan_inputs(torch.float64, directions, 1, 35, 3, 2)
    assert torch.autograd.gradcheck(selective_scan, inputs, fast_mode=True)


@DIRECTIONS
def test_a_skipped_token_leaves_the_state_as_it_was(directions):
    x, step, A, B, C, D = (v.detach() for v in scan_inputs(torch.float32, directions))
    step[:, :, 20:25] = SKIPPED
    kept = torch.cat([torch.arange(20), torch.arange(25, 75)])
    short = selective_scan(x[:, :, kept], step[:, :, kept], A, B[:, :, kept], C[:, :, kept], D)
    torch.testing.assert_close(selective_scan(x, step, A, B, C, D)[:, kept], short)


@DIRECTIONS
@compiled_types(2e-5)
def test_causal_conv_is_its_definition(dtype, tolerance, directions):
    inputs = conv_inputs(dtype, directions)
    same(causal_conv(*inputs), causal_conv_reference(*inputs), inputs, tolerance)


@pytest.mark.slow
@DIRECTIONS
def test_causal_conv_gradients(directions):
    assert torch.autograd.gradcheck(causal_conv, conv_inputs(torch.float64, directions, 1, 9, 3), fast_mode=True)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_scale", [1.0, 30.0])
@compiled_types(5e-5)
def test_wkv_is_the_double_sum(dtype, tolerance, key_scale, causal):
    inputs = wkv_inputs(dtype, key_scale=key_scale)
    same(wkv(*inputs, causal), wkv_reference(*inputs, causal), inputs, tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("causal", [False, True])
def test_wkv_gradients(causal):
    assert torch.autograd.gradcheck(lambda *x: wkv(*x, causal), wkv_inputs(torch.float64, 1, 9, 3), fast_mode=True)


def test_a_masked_key_reaches_no_other_token():
    w, u, k, v = (x.detach() for x in wkv_inputs(torch.float32))
    k[:, 5:9] = LOWEST
    before = wkv(w, u, k, v)
    v[:, 5:9] = 1e3
    torch.testing.assert_close(wkv(w, u, k, v), before, atol=1e-6, rtol=0)


OPERATORS = {
    "selective_scan": lambda: scan_inputs(torch.float32, 2),
    "causal_conv": lambda: conv_inputs(torch.float32, 2),
    "wkv": lambda: [*wkv_inputs(torch.float32), False],
}


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_keeps_what_torch_library_asks_of_it(name):
    """Schema, fake implementation, autograd registration, and the same under AOT autograd with dynamic shapes."""
    torch.library.opcheck(getattr(torch.ops.locore, name).default, OPERATORS[name](), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["mamba", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rwkv", "longformer"))])
def test_a_compiled_encoder_computes_the_same(name):
    """torch.compile traces through the operators; the backend needs no compiler."""
    torch.manual_seed(0)
    layout, encoder = ListLayout(5, 6), create(name, width=24, depth=1, heads=2)
    tokens, mask = torch.randn(2, layout.tokens, 24), torch.ones(2, layout.tokens, dtype=torch.bool)
    compiled = torch.compile(encoder, backend="aot_eager")
    weights = list(encoder.parameters())
    ours, expected = compiled(tokens, layout, mask), encoder(tokens, layout, mask)
    same(ours, expected, weights, 1e-4)


@pytest.mark.parametrize(("tokens", "reach"), [(40, 4), (37, 8), (5, 8), (130, 33), (700, 280)])
@BOTH_TYPES
def test_window_attention_is_its_definition(dtype, tolerance, tokens, reach):
    inputs, window = window_inputs(dtype, tokens, reach)
    same(
        window_attention(*inputs, window),
        window_attention_reference(*inputs, window.real, window.is_global, window.reach),
        inputs,
        tolerance,
    )


def test_dropout_of_window_attention_drops_weights_and_scales_the_others():
    (query, key, _), plain = window_inputs(torch.float32, 90, 8)
    # With one-hot values the output is the attention weights themselves.
    value = torch.eye(90).expand(*query.shape[:2], -1, -1)
    window = Window.plan(plain.real, plain.is_global, plain.reach, dropout=0.25)
    weights = window_attention_reference(query, key, value, window.real, window.is_global, window.reach)
    torch.manual_seed(0)
    dropped = window_attention(query, key, value, window)
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], weights[kept] / 0.75, atol=1e-6, rtol=1e-5)
    assert abs(float(kept[weights > 0].double().mean()) - 0.75) < 0.02
    (gradient,) = torch.autograd.grad(dropped.sum(), query)
    assert gradient.isfinite().all()
    assert not window.real.all()  # a masked batch, of which some tokens may see nothing


def test_a_token_with_nothing_to_attend_to_gets_zero():
    inputs, _ = window_inputs(torch.float32, 100, 4)
    real = torch.zeros(2, 100, dtype=torch.bool)
    real[:, 50] = True
    output = window_attention(*inputs, Window.plan(real, torch.zeros(100, dtype=torch.bool), 4))
    assert torch.equal(output[:, :, :46], torch.zeros(2, 3, 46, 4)) and bool(output.isfinite().all())
    output.sum().backward()
    assert all(bool(x.grad.isfinite().all()) for x in inputs)


def test_flex_attention_with_our_mask_is_the_definition():
    """What runs on CUDA, through FlexAttention's own reference here."""
    inputs, window = window_inputs(torch.float32, 150, 20, 16)
    inputs = [x.detach() for x in inputs]
    mixed = flex_attention(*inputs, block_mask=block_mask(window.real, window.is_global, window.reach))
    torch.testing.assert_close(
        mixed, window_attention_reference(*inputs, window.real, window.is_global, window.reach), atol=1e-5, rtol=1e-5
    )


def test_logarithms_and_exponentials_of_the_kernels_are_exact_to_a_few_units():
    x = np.concatenate([np.linspace(-80, 80, 20_001), np.float32(10.0) ** np.arange(-30, 2)]).astype(np.float32)
    ours = np.empty((4, len(x)), np.float32)
    _tabulate(x, ours)
    exact = x.astype(np.float64)
    expected = (np.exp(exact), np.exp2(-abs(exact)), np.log(abs(exact) + 1e-30), np.logaddexp(0, exact))
    for ours_, expected_ in zip(ours, expected, strict=True):
        np.testing.assert_allclose(ours_, expected_, rtol=5e-7, atol=1e-7 if expected_.min() < 0 else 1e-38)


@numerics.kernel
def _tabulate(x, out):
    for i in prange(len(x)):
        out[0, i], out[1, i] = numerics.exp(x[i]), numerics.exp2(-abs(x[i]))
        out[2, i], out[3, i] = numerics.log(abs(x[i]) + np.float32(1e-30)), numerics.softplus(x[i])
