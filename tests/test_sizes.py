"""Table A of the supplement, to the last parameter (reference: no local projection, 2048-d globals)."""

import pytest

from locore.reranking import ListwiseReranker


@pytest.mark.parametrize(
    ("size", "width", "parameters"),
    [("tiny", 512, 19_438_082), ("small", 768, 58_672_898), ("base", 768, 111_830_786)],
)
def test_longformer_has_the_published_number_of_parameters(size, width, parameters):
    model = ListwiseReranker("longformer", local_dim=width, global_dim=2048, size=size)
    assert sum(p.numel() for p in model.parameters()) == parameters
