"""What the compiled CPU kernels share: an exponential that LLVM vectorises, and zero-copy views of tensors."""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit, types
from numba.extending import overload

CHANNELS = 32  # channels a work item walks at once: the vector dimension of every kernel


def exp(x):
    """Exponential inside numba kernels; the Python body never runs, the overload below does."""
    raise NotImplementedError


@overload(exp, inline="always")
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


kernel = njit(parallel=True, fastmath={"contract", "reassoc", "nsz", "arcp"}, cache=True, error_model="numpy")


def array(tensor: torch.Tensor) -> np.ndarray:
    """The tensor as a contiguous numpy array, copied only if it is not contiguous already."""
    return tensor.detach().contiguous().numpy()


def compiled(*tensors: torch.Tensor) -> bool:
    """Whether the compiled CPU kernels take these tensors: on the CPU, all float32 or all float64."""
    return {t.device.type for t in tensors} == {"cpu"} and {t.dtype for t in tensors} in (
        {torch.float32},
        {torch.float64},
    )
