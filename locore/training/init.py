"""The start of the projections of descriptors to tokens: a whitening of the training descriptors."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS = 50_000  # descriptors that a whitening is estimated from


@torch.no_grad()
def whiten(projections: list[tuple[nn.Module, Tensor]], share: float) -> None:
    """Initialise linear projections as a PCA whitening of what they read, in random directions.

    Cells of a feature map have much in common; whitened, tokens differ where images differ, and attention can match
    them from the first step. Descriptors that were trained to be compared lose by it.

    Args:
        projections: each with rows (…, D) of what it reads.
        share: 1 = whitened, 0 = scaled alike in all directions, so that inner products keep their ratios.
    """
    for project, rows in projections:
        if not isinstance(project, nn.Linear):
            continue
        rows = rows.reshape(-1, rows.shape[-1])
        rows = rows[torch.randperm(len(rows))[:ROWS]].float()
        covariance = rows.T.double().cov()
        # The floor keeps directions that are mere noise from being blown up.
        covariance.diagonal().add_(0.1 * covariance.diagonal().mean())
        values, vectors = torch.linalg.eigh(covariance)
        kept = min(project.weight.shape)
        scale = values ** (share / 2) * values.mean() ** ((1 - share) / 2)
        whitening = (vectors / scale).flip(1)[:, :kept].float()
        turn = nn.init.orthogonal_(torch.empty(project.weight.shape[0], kept))
        project.weight.copy_(0.5 * turn @ whitening.T)
        project.bias.copy_(-project.weight @ rows.mean(0))
