"""The sizes of the published encoder (Table A of the supplement: no local projection, 2048-d globals) and of ours."""

import pytest

import backbones
from locore.reranking import ListwiseReranker


@pytest.mark.parametrize(
    ("size", "width", "parameters"),
    [("tiny", 512, 19_438_082), ("small", 768, 58_672_898), ("base", 768, 111_830_786)],
)
def test_longformer_has_the_published_number_of_parameters(size, width, parameters):
    model = ListwiseReranker("longformer", local_dim=width, global_dim=2048, size=size)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_backbones_of_size_mini_are_equally_large():
    """Within one per cent, so that a table over them compares structures."""
    counts = {
        name: sum(p.numel() for p in backbones.create(name, "mini").parameters())
        for name in (
            *("mamba", "mamba2", "mamba3", "hydra", "rwkv", "rwkv7", "gated_deltanet", "mlstm", "hybrid"),
            *("linear_attention", "list_attention"),
            *("longformer", "transformer", "pairwise", "query_attention"),
        )
    }
    assert max(counts.values()) < 1.01 * min(counts.values()), counts
