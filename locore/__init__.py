"""LOCORE: list-wise re-ranking for image retrieval, with swappable sequence backbones.

    hits = locore.rerank("query.jpg", ["a.jpg", "b.jpg"], "runs/mamba")

    model = locore.load("runs/mamba")
    ranking = model.rerank(shortlist)

Names are imported when they are first used.
"""

from typing import TYPE_CHECKING

from locore.utils.lazy import lazy

if TYPE_CHECKING:  # the same names for type checkers
    from locore.checkpoints.native import load as load
    from locore.checkpoints.native import save as save
    from locore.checkpoints.native import trained_on as trained_on
    from locore.datasets.benchmark import Benchmark as Benchmark
    from locore.datasets.benchmark import benchmarks as benchmarks
    from locore.descriptors.extractor import Extractor as Extractor
    from locore.descriptors.files import Files as Files
    from locore.descriptors.table import Descriptors as Descriptors
    from locore.evaluation.benchmark import evaluate as evaluate
    from locore.evaluation.embeddings import evaluate_embeddings as evaluate_embeddings
    from locore.evaluation.search import Search as Search
    from locore.pipeline.run import run_experiment as run_experiment
    from locore.pipeline.settings import Data as Data
    from locore.pipeline.settings import Experiment as Experiment
    from locore.pipeline.settings import Model as Model
    from locore.pipeline.settings import Outputs as Outputs
    from locore.pipeline.settings import Reranking as Reranking
    from locore.pipeline.train import train_reranker as train_reranker
    from locore.reranking.cascade import Cascade as Cascade
    from locore.reranking.ensemble import Ensemble as Ensemble
    from locore.reranking.ensemble import StandardisedEnsemble as StandardisedEnsemble
    from locore.reranking.ensemble import WithSearch as WithSearch
    from locore.reranking.listwise import ListwiseReranker as ListwiseReranker
    from locore.reranking.reranker import Ranking as Ranking
    from locore.reranking.reranker import Reranker as Reranker
    from locore.reranking.reranker import Shortlist as Shortlist
    from locore.reranking.reranker import rerankers as rerankers
    from locore.reranking.windows import Windows as Windows
    from locore.search.hits import Hit as Hit
    from locore.search.hits import rerank as rerank
    from locore.search.index import index as index
    from locore.training.embedder import Finetuning as Finetuning
    from locore.training.lists import Sampling as Sampling
    from locore.training.loop import Training as Training

__version__ = "0.2.0"

_MODULES = {
    "checkpoints.native": "load save trained_on",
    "datasets.benchmark": "Benchmark benchmarks",
    "descriptors.extractor": "Extractor",
    "descriptors.files": "Files",
    "descriptors.table": "Descriptors",
    "evaluation.benchmark": "evaluate",
    "evaluation.embeddings": "evaluate_embeddings",
    "evaluation.search": "Search",
    "pipeline.run": "run_experiment",
    "pipeline.settings": "Data Experiment Model Outputs Reranking",
    "pipeline.train": "train_reranker",
    "reranking.cascade": "Cascade",
    "reranking.ensemble": "Ensemble StandardisedEnsemble WithSearch",
    "reranking.listwise": "ListwiseReranker",
    "reranking.reranker": "Ranking Reranker Shortlist rerankers",
    "reranking.windows": "Windows",
    "search.hits": "Hit rerank",
    "search.index": "index",
    "training.embedder": "Finetuning",
    "training.lists": "Sampling",
    "training.loop": "Training",
}
__getattr__, __dir__, __all__ = lazy(
    __name__, {name: f"locore.{module}" for module, names in _MODULES.items() for name in names.split()}
)
