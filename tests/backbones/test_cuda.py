"""What runs on a GPU against its definition: on a GPU where there is one, elsewhere the Triton kernels interpreted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from op_inputs import conv_inputs, scan_inputs, window_inputs, wkv_inputs

from backbones import ListLayout, create
from backbones.ops.causal_conv import causal_conv, causal_conv_reference
from backbones.ops.selective_scan import selective_scan, selective_scan_reference
from backbones.ops.window_attention import Window, window_attention, window_attention_reference
from backbones.ops.wkv import wkv, wkv_reference


def on_gpu(test):
    absent = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine")
    return pytest.mark.cuda(absent(test))


INTERPRETED = """
import torch
from op_inputs import scan_inputs, wkv_inputs
from backbones.ops.selective_scan import _triton as selective_scan_triton
from backbones.ops.wkv import _triton as wkv_triton
from backbones.ops.selective_scan import SKIPPED, selective_scan_reference
from backbones.ops.wkv import wkv_reference

def agrees(ours, reference):
    torch.testing.assert_close(ours, reference, atol=1e-4 * max(1.0, float(reference.abs().max())), rtol=1e-4)

def check(inputs, reference, forward, backward):
    upstream = torch.randn_like(reference).contiguous()
    expected = torch.autograd.grad(reference, inputs, upstream)
    inputs = [x.detach() for x in inputs]
    y, kept = forward(*inputs)
    agrees(y, reference.detach())
    for ours, exact in zip(backward(upstream, inputs, y, kept), expected, strict=True):
        agrees(ours, exact)
"""

WKV = """
for causal in (False, True):
    inputs = wkv_inputs(torch.float32, batch=1, tokens=9, channels=37)
    check(
        inputs, wkv_reference(*inputs, causal), lambda *x: wkv_triton.forward(*x, causal),
        lambda upstream, x, y, log_sum: wkv_triton.backward(upstream, *x, y, log_sum, causal),
    )
"""

SCAN = """
for directions in (1, 2):
    inputs = scan_inputs(torch.float32, directions, batch=2, tokens=11, channels=33, state=5)
    with torch.no_grad():
        inputs[1][:, :, 5:7] = SKIPPED
    check(
        inputs, selective_scan_reference(*inputs), lambda *x: selective_scan_triton.forward(*x, 4),
        lambda upstream, x, y, states: selective_scan_triton.backward(upstream, *x, states, 4),
    )
"""


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="the GPU runs the kernels themselves")
def test_the_triton_kernels_interpreted_on_a_cpu_are_their_definitions():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "helpers")}
    program = f"{INTERPRETED}{WKV}{SCAN}print('agrees')"
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "agrees" in done.stdout, done.stderr


def same_on_cuda(operator, reference, inputs, dtype, tolerance):
    """The operator on CUDA against its definition on the CPU in float64, of the same rounded inputs, and gradients."""
    inputs = [x.detach().to(dtype) for x in inputs]
    exact = [x.double().requires_grad_() for x in inputs]
    ours = [x.cuda().requires_grad_() for x in inputs]
    expected, output = reference(*exact), operator(*ours)
    upstream = torch.randn_like(expected).to(dtype)
    gradients = torch.autograd.grad(output, ours, upstream.cuda())
    for a, b in zip(
        (output, *gradients), (expected, *torch.autograd.grad(expected, exact, upstream.double())), strict=True
    ):
        torch.testing.assert_close(
            a.cpu().double(), b, atol=tolerance * max(1.0, float(b.detach().abs().max())), rtol=tolerance
        )


@on_gpu
@pytest.mark.parametrize("causal", [False, True])
def test_wkv_on_cuda(causal):
    def operator(*inputs):
        return wkv(*inputs, causal)

    same_on_cuda(
        operator, lambda *inputs: wkv_reference(*inputs, causal), wkv_inputs(torch.float32), torch.float32, 1e-4
    )


@on_gpu
@pytest.mark.parametrize(("state", "tokens"), [(5, 75), (16, 64), (1, 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_selective_scan_on_cuda(directions, state, tokens):
    inputs = scan_inputs(torch.float32, directions, tokens=tokens, state=state)
    same_on_cuda(selective_scan, selective_scan_reference, inputs, torch.float32, 1e-4)


BOTH_TYPES = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 5e-2)])


@on_gpu
@BOTH_TYPES
@pytest.mark.parametrize("directions", [1, 2])
def test_convolution_on_cuda(dtype, tolerance, directions):
    same_on_cuda(causal_conv, causal_conv_reference, conv_inputs(torch.float32, directions), dtype, tolerance)


@on_gpu
@BOTH_TYPES
def test_window_attention_on_cuda(dtype, tolerance):
    inputs, window = window_inputs(torch.float32, 300, 40, 32)
    on_cuda = Window.plan(window.real.cuda(), window.is_global.cuda(), window.reach)
    same_on_cuda(
        lambda *inputs: window_attention(*inputs, on_cuda),
        lambda *inputs: window_attention_reference(*inputs, window),
        inputs,
        dtype,
        tolerance,
    )


@on_gpu
@pytest.mark.parametrize("name", ["mamba", "rwkv", "longformer", "transformer"])
def test_an_encoder_computes_the_same_on_cuda(name):
    """With masked tokens, in training mode's gradients too."""
    torch.manual_seed(0)
    layout, encoder = ListLayout(6, 9), create(name, width=32, depth=2, heads=2)
    tokens, mask = torch.randn(2, layout.tokens, 32), torch.ones(2, layout.tokens, dtype=torch.bool)
    mask[0, 40:45] = False
    mask[1, 30:] = False

    def passed(device):
        moved = encoder.to(device)
        output = moved(tokens.to(device), layout, mask.to(device))[mask.to(device)]
        gradients = torch.autograd.grad(output.square().mean(), list(moved.parameters()))
        return [x.detach().cpu() for x in (output, *gradients)]

    for here, there in zip(passed("cuda"), passed("cpu"), strict=True):
        torch.testing.assert_close(here, there, atol=1e-3 * max(1e-3, float(there.abs().max())), rtol=1e-3)
