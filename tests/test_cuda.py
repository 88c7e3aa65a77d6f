"""What runs on a GPU against its definition: on a GPU where there is one, the Triton kernels everywhere."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_ops import conv_inputs, same, scan_inputs, window_inputs, wkv_inputs

from backbones.ops.causal_conv import causal_conv, causal_conv_reference
from backbones.ops.selective_scan import selective_scan, selective_scan_reference
from backbones.ops.window_attention import Window, window_attention, window_attention_reference
from backbones.ops.wkv import wkv, wkv_reference

on_gpu = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device on this machine"),
]

INTERPRETED = """
import torch
from test_ops import wkv_inputs
from backbones.ops import wkv_triton
from backbones.ops.wkv import wkv_reference
for causal in (False, True):
    inputs = wkv_inputs(torch.float32, batch=1, tokens=9, channels=37)
    reference = wkv_reference(*inputs, causal)
    upstream = torch.randn_like(reference).contiguous()
    expected = torch.autograd.grad(reference, inputs, upstream)
    w, u, k, v = (x.detach() for x in inputs)
    y, log_sum = wkv_triton.forward(w, u, k, v, causal)
    torch.testing.assert_close(y, reference.detach(), atol=1e-4, rtol=1e-4)
    for ours, exact in zip(wkv_triton.backward(upstream, w, u, k, v, y, log_sum, causal), expected, strict=True):
        torch.testing.assert_close(ours, exact, atol=1e-4, rtol=1e-4)
print("agrees")
"""


def test_the_triton_kernels_interpreted_on_a_cpu_are_the_double_sum():
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run([sys.executable, "-c", INTERPRETED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "agrees" in done.stdout, done.stderr


def on_cuda(inputs, dtype=torch.float32):
    return [x.detach().to("cuda", dtype).requires_grad_() for x in inputs]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("mark", [pytest.param(None, marks=on_gpu)])
def test_wkv_on_cuda(mark, causal):
    inputs = on_cuda(wkv_inputs(torch.float32))
    same(wkv(*inputs, causal), wkv_reference(*inputs, causal), inputs, 1e-4)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=on_gpu), pytest.param(torch.bfloat16, marks=on_gpu)]
)
def test_scan_and_convolution_on_cuda(dtype, directions):
    tolerance = 1e-4 if dtype == torch.float32 else 5e-2
    inputs = on_cuda(scan_inputs(torch.float32, directions))
    same(selective_scan(*inputs), selective_scan_reference(*inputs), inputs, tolerance)
    inputs = on_cuda(conv_inputs(torch.float32, directions), dtype)
    same(causal_conv(*inputs), causal_conv_reference(*inputs), inputs, tolerance)


@pytest.mark.parametrize(
    "dtype", [pytest.param(torch.float32, marks=on_gpu), pytest.param(torch.bfloat16, marks=on_gpu)]
)
def test_window_attention_on_cuda(dtype):
    inputs, window = window_inputs(torch.float32, 300, 40, 32)
    inputs = on_cuda(inputs, dtype)
    window = Window.of(window.real.cuda(), window.global_.cuda(), window.reach)
    tolerance = 1e-3 if dtype == torch.float32 else 5e-2
    same(window_attention(*inputs, window), window_attention_reference(*inputs, window), inputs, tolerance)
