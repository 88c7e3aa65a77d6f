"""What a training starts from: projections that whiten, queries like keys, a head that knows how many are right."""

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


@torch.no_grad()
def start_queries_and_keys(model: nn.Module, equal: bool) -> None:
    """Initialise the query and key projections of every attention, with weights of variance 1/width.

    Args:
        model: any re-ranker whose attention is ours, PyTorch's or timm's.
        equal: both are the same, so that a token attends to similar ones at first; False = drawn independently.

    Raises:
        ValueError: it has no attention of these kinds.
    """
    found = [pair for module in model.modules() if (pair := _query_and_key(module))]
    if not found:
        raise ValueError("This re-ranker has no query and key projections; leave Model.queries_and_keys out.")
    for query, key in found:
        for weight in (query, key):
            bound = (3 / weight.shape[1]) ** 0.5
            nn.init.uniform_(weight, -bound, bound)
        if equal:
            key.copy_(query)


def _query_and_key(module: nn.Module) -> tuple[Tensor, Tensor] | None:
    """Return the weights (D, D) of an attention's query and key projections; None if it is not an attention."""
    if isinstance(module, nn.MultiheadAttention):
        query, key, _ = module.in_proj_weight.chunk(3)
        return query, key
    together, asking, asked = (getattr(module, name, None) for name in ("qkv", "query", "key"))
    if isinstance(together, nn.Linear):
        query, key, _ = together.weight.chunk(3)
        return query, key
    if isinstance(asking, nn.Linear) and isinstance(asked, nn.Linear):
        return asking.weight, asked.weight
    return None


@torch.no_grad()
def start_at_share(bias: Tensor, share: float) -> None:
    """Set the bias of a head of two logits so that its log-odds are those of the share of right candidates.

    Otherwise all tokens are taught first that most candidates are wrong. The layers of an encoder learn one vector for
    all of them within a few steps, and some never leave it (the remedy is that of Lin et al. 2017, section 4.1).

    Args:
        bias: (2,) of the logits of wrong and right.
        share: of the candidates of training lists that are right.
    """
    half = torch.logit(torch.tensor(share), eps=1e-3) / 2
    bias.copy_(torch.stack([-half, half]))
