"""The scan on a GPU: the same operator by the Triton kernels of `_triton.py`, which are loaded where they run."""

from __future__ import annotations

from backbones.ops.selective_scan.cpu import STRIDE, scan, scan_backward


@scan.register_kernel("cuda")
def _(x, step, A, B, C, D):
    from backbones.ops.selective_scan import _triton

    return _triton.forward(*(t.contiguous() for t in (x, step, A, B, C, D)), STRIDE)


@scan_backward.register_kernel("cuda")
def _(grad, x, step, A, B, C, D, states):
    from backbones.ops.selective_scan import _triton

    return _triton.backward(*(t.contiguous() for t in (grad, x, step, A, B, C, D, states)), STRIDE)
