"""The WKV average on a GPU: the same operator by the Triton kernels of `_triton.py`, loaded where they run."""

from __future__ import annotations

from backbones.ops.wkv.cpu import wkv_backward, wkv_operator


@wkv_operator.register_kernel("cuda")
def _(w, u, k, v, causal):
    from backbones.ops.wkv import _triton

    return _triton.forward(*(t.contiguous() for t in (w, u, k, v)), causal)


@wkv_backward.register_kernel("cuda")
def _(grad, w, u, k, v, y, log_sum, causal):
    from backbones.ops.wkv import _triton

    return _triton.backward(*(t.contiguous() for t in (grad, w, u, k, v, y, log_sum)), causal)
