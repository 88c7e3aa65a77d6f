"""How much is computed at a time, by the memory of the device."""

from __future__ import annotations

import torch

VALUES = 2**22  # of a layer's activations: more would leave the caches of a CPU
BYTES = 256  # that a GPU holds for each of them: of all kinds of inner values together, in single precision


def values_at_once(device: torch.device) -> int:
    """Return how many values of a layer's activations are computed at a time without gradients.

    On a GPU they follow from its free memory, as a power of two, so that they seldom differ between runs.
    """
    if device.type != "cuda":
        return VALUES
    free, _ = torch.cuda.mem_get_info(device)
    return max(VALUES, 2 ** int(free // BYTES).bit_length() // 2)
