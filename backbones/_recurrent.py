"""Starting values that recurrent layers share."""

from __future__ import annotations

import math

import torch
from torch import Tensor

FEWEST, MOST = 0.001, 0.1  # of a step at the start


def log_uniform_steps(*shape: int) -> Tensor:
    """Return biases whose softplus is log-uniform in [0.001, 0.1] (Mamba, section 3.6)."""
    step = torch.empty(shape).uniform_(math.log(FEWEST), math.log(MOST)).exp()
    return step + torch.log(-torch.expm1(-step))
