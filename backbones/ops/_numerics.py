"""Parts that the kernels share: which tensors they take, vectorised functions, zero-copy views of tensors."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload, register_jitable

LOG2_E = 1.4426950408889634
CHANNELS = 64  # channels a work item walks at once: fewer, and setting up each inner loop takes longer than the loop


def exp(x):
    """Exponential inside numba kernels; the Python body never runs, the overload below does."""
    raise NotImplementedError


@overload(exp)
def _exp(x):
    """float32: Cephes' polynomial (relative error below 2e-7), branch-free so that it vectorises. float64: libm."""
    if not (isinstance(x, types.Float) and x.bitwidth == 32):
        return lambda x: math.exp(x)

    def impl(x):
        x = min(max(x, np.float32(-87.0)), np.float32(88.0))
        power = np.floor(x * np.float32(1.44269504) + np.float32(0.5))
        r = x - power * np.float32(0.693359375) + power * np.float32(2.12194440e-4)
        p = np.float32(1.9875691500e-4)
        p = p * r + np.float32(1.3981999507e-3)
        p = p * r + np.float32(8.3334519073e-3)
        p = p * r + np.float32(4.1665795894e-2)
        p = p * r + np.float32(1.6666665459e-1)
        p = p * r + np.float32(5.0000001201e-1)
        p = p * r * r + r + np.float32(1.0)
        return p * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)

    return impl


def exp2(x):
    """2^x for x <= 0 inside numba kernels; the Python body never runs, the overload does."""
    raise NotImplementedError


def softplus(x):
    """log(1 + e^x) inside numba kernels; the Python body never runs, the overload does."""
    raise NotImplementedError


def log(x):
    """Natural logarithm of a positive number inside numba kernels; the Python body never runs, the overload does."""
    raise NotImplementedError


@overload(exp2)
def _exp2(x):
    """float32: a polynomial for the fraction (relative error below 3e-7), a third cheaper than `exp`. float64: libm."""
    if not (isinstance(x, types.Float) and x.bitwidth == 32):
        return lambda x: math.exp(x * 0.6931471805599453)

    def impl(x):
        x = max(x, np.float32(-126.0))
        power = np.floor(x + np.float32(0.5))
        r = x - power
        p = np.float32(1.32647272e-03)
        p = p * r + np.float32(9.67151265e-03)
        p = p * r + np.float32(5.55073374e-02)
        p = p * r + np.float32(2.40222421e-01)
        p = p * r + np.float32(6.93146978e-01)
        p = p * r + np.float32(1.0)
        return p * np.int32((np.int32(power) + np.int32(127)) << np.int32(23)).view(np.float32)

    return impl


@register_jitable
def log_near_one(r):
    """log(1 + r) for r in [-0.3, 0.42], float32: Cephes' polynomial."""
    z = r * r
    p = np.float32(7.0376836292e-2)
    p = p * r - np.float32(1.1514610310e-1)
    p = p * r + np.float32(1.1676998740e-1)
    p = p * r - np.float32(1.2420140846e-1)
    p = p * r + np.float32(1.4249322787e-1)
    p = p * r - np.float32(1.6668057665e-1)
    p = p * r + np.float32(2.0000714765e-1)
    p = p * r - np.float32(2.4999993993e-1)
    p = p * r + np.float32(3.3333331174e-1)
    return r + z * (p * r - np.float32(0.5))


@overload(log)
def _log(x):
    """float32: relative error below 2e-7, branch-free so that it vectorises. float64: libm."""
    if not (isinstance(x, types.Float) and x.bitwidth == 32):
        return lambda x: math.log(x)

    def impl(x):
        bits = np.float32(x).view(np.int32)
        m = np.int32((bits & np.int32(0x007FFFFF)) | np.int32(0x3F000000)).view(np.float32)  # in [0.5, 1)
        low = np.float32(m < np.float32(0.70710678))
        power = np.float32((bits >> np.int32(23)) - np.int32(126)) - low
        return log_near_one(m + m * low - np.float32(1.0)) + np.float32(0.69314718) * power

    return impl


@overload(softplus)
def _softplus(x):
    """float32: max(x, 0) + log(1 + u), u = e^-|x| in [0, 1], halved where 1 + u is nearer to 2. float64: libm."""
    if not (isinstance(x, types.Float) and x.bitwidth == 32):
        return lambda x: max(x, 0.0) + math.log1p(math.exp(-abs(x)))

    def impl(x):
        u = exp(-abs(x))
        high = np.float32(u > np.float32(0.41421356))
        r = u - high * (np.float32(0.5) + np.float32(0.5) * u)
        return max(x, np.float32(0.0)) + (log_near_one(r) + np.float32(0.69314718) * high)

    return impl


kernel = njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, cache=True, error_model="numpy")


def array(tensor: torch.Tensor) -> np.ndarray:
    """Return the tensor as a contiguous numpy array, copied only if it is not contiguous."""
    return tensor.detach().contiguous().numpy()


def compiled(*tensors: torch.Tensor) -> bool:
    """Return whether the compiled CPU kernels take these tensors: on the CPU, all float32 or all float64."""
    return {t.device.type for t in tensors} == {"cpu"} and {t.dtype for t in tensors} in (
        {torch.float32},
        {torch.float64},
    )


def on_gpu(*tensors: torch.Tensor) -> bool:
    """Return whether the Triton kernels take these tensors: on a GPU, all float32, with Triton installed."""
    return all(t.is_cuda and t.dtype == torch.float32 for t in tensors) and bool(importlib.util.find_spec("triton"))
