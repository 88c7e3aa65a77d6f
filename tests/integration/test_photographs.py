"""Do no harm: on photographs that nothing was tuned to, no default makes the search worse."""

import json
import os
from pathlib import Path

import pytest

import locore
from experiments.run import main
from locore.reranking.ensemble import default_ensemble
from locore.reranking.pairwise import without_weights
from locore.search.hits import PHOTOS

GROCERIES = Path(os.environ.get("LOCORE_GROCERIES", Path(__file__).parents[2] / "shared" / "data" / "groceries.zip"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not GROCERIES.exists(), reason="groceries.zip is not on this machine"),
]


def worse(differences: dict[str, list[float]]) -> dict[str, list[float]]:
    """Metrics whose 95 % interval of re-ranked less global lies below zero; of R@10 and others below half a point."""
    least = {"R@1": 0.0, "mAP@R": 0.0}
    return {name: bounds for name, bounds in differences.items() if bounds[1] < least.get(name, -0.5)}


@pytest.mark.parametrize("name", without_weights())
def test_no_re_ranker_without_training_is_below_the_search(name):
    benchmark = locore.benchmarks.create("groceries", root=str(GROCERIES), max_queries=400)
    reranker = locore.rerankers.create(name)
    both = locore.WithSearch(reranker, default_ensemble(reranker))
    for protocol, found in locore.evaluate(both, benchmark, locore.Extractor(**PHOTOS), candidates=100).items():
        assert not worse(found["difference"]["reranked"]), protocol


def test_the_trained_default_is_above_the_search(tmp_path):
    settings = [f"groceries.root = '{GROCERIES}'", "groceries.max_queries = 400", "Reranking.ensemble = False"]
    arguments = [part for line in settings for part in ("--set", line)]
    arguments += ["--gin", "gin/mamba.gin", "--gin", "gin/boards/groceries.gin", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    for protocol, found in json.loads((tmp_path / "run" / "metrics.json").read_text())["protocols"].items():
        differences = found["difference"]["reranked"]
        assert not worse(differences) and differences["mAP@R"][0] > 0, protocol
