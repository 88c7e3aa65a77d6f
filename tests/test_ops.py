"""Compiled kernels against their definitions in plain tensors, forward and backward."""

import pytest
import torch

from backbones.ops.selective_scan import selective_scan, selective_scan_reference
from backbones.ops.window_attention import window_attention, window_attention_reference
from backbones.ops.wkv import LOWEST, wkv, wkv_reference


def scan_inputs(dtype, batch=2, tokens=75, channels=40, state=5):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    values = (
        normal(batch, tokens, channels),
        normal(batch, tokens, channels).abs(),
        -normal(channels, state).abs(),
        normal(batch, tokens, state),
        normal(batch, tokens, state),
        normal(channels),
    )
    return [v.requires_grad_() for v in values]


def wkv_inputs(dtype, batch=2, tokens=45, channels=40, key_scale=1.0):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape):
        return torch.randn(*shape, dtype=dtype, generator=generator)

    values = (
        0.3 * normal(channels),
        normal(channels),
        key_scale * normal(batch, tokens, channels),
        normal(batch, tokens, channels),
    )
    return [v.requires_grad_() for v in values]


def same(ours, reference, inputs, tolerance):
    torch.testing.assert_close(ours, reference, atol=tolerance, rtol=tolerance)
    upstream = torch.randn_like(reference)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, upstream), torch.autograd.grad(reference, inputs, upstream), strict=True
    ):
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, float(b.abs().max())), rtol=tolerance)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_selective_scan_is_its_definition(dtype, tolerance, reverse):
    inputs = scan_inputs(dtype)
    same(selective_scan(*inputs, reverse), selective_scan_reference(*inputs, reverse), inputs, tolerance)


@pytest.mark.parametrize("reverse", [False, True])
def test_selective_scan_gradients(reverse):
    assert torch.autograd.gradcheck(
        lambda *x: selective_scan(*x, reverse), scan_inputs(torch.float64, 1, 35, 3, 2), fast_mode=True
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("key_scale", [1.0, 30.0])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_wkv_is_the_double_sum(dtype, tolerance, key_scale, causal):
    inputs = wkv_inputs(dtype, key_scale=key_scale)
    same(wkv(*inputs, causal), wkv_reference(*inputs, causal), inputs, tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_wkv_gradients(causal):
    assert torch.autograd.gradcheck(lambda *x: wkv(*x, causal), wkv_inputs(torch.float64, 1, 9, 3), fast_mode=True)


def test_a_masked_key_reaches_no_other_token():
    w, u, k, v = (x.detach() for x in wkv_inputs(torch.float32))
    k[:, 5:9] = LOWEST
    before = wkv(w, u, k, v)
    v[:, 5:9] = 1e3
    torch.testing.assert_close(wkv(w, u, k, v), before, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("tokens", "reach"), [(40, 4), (37, 8), (5, 8)])
def test_window_attention_is_its_definition(tokens, reach):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, tokens, 4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    real = torch.rand(2, tokens) > 0.2
    real[:, 0] = True
    global_ = torch.arange(tokens) % 5 == 0
    arguments = (real, global_, reach)
    same(window_attention(*inputs, *arguments), window_attention_reference(*inputs, *arguments), inputs, 1e-10)
