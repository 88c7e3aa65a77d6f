"""From settings to the objects of an experiment: re-rankers, searches, descriptors."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backbones.registry import suggest
from locore.checkpoints import language_models, native, pretrained, vision_models
from locore.datasets import Benchmark, ImageSet
from locore.descriptors.cross_fit import FITTED_ON, WHOLE, describe_unseen
from locore.descriptors.table import Descriptors, SearchedTable
from locore.evaluation.search import NoPositives, Search
from locore.pipeline.settings import EQUAL, LISTWISE, Experiment, Model, plan
from locore.reranking import Ensemble, ListwiseReranker, Reranker, StandardisedEnsemble, Windows, pairwise
from locore.reranking.cascade import Cascade
from locore.reranking.pairwise import PairwiseReranker
from locore.reranking.reranker import lists_at_once, rerankers
from locore.reranking.weights_file import WEIGHTS
from locore.retrieval import Neighbours
from locore.training.init import start_queries_and_keys
from locore.utils import distributed

log = logging.getLogger(__name__)

LearnedReranker = ListwiseReranker | PairwiseReranker


def descriptor_widths(experiment: Experiment) -> tuple[int, int]:
    """Return the widths of a global and of a local descriptor."""
    return experiment.files.widths if experiment.files else experiment.extractor.sizes


def create_reranker(experiment: Experiment, widths: tuple[int, int], positions: int) -> Reranker:
    """Create the re-ranker with random weights, or one that has none.

    Args:
        experiment: names it.
        widths: of a global and of a local descriptor.
        positions: rows of the position table of a list-wise re-ranker.
    """
    model, (global_dim, local_dim) = experiment.model, widths
    if model.listwise:
        return create_listwise(model, widths, positions, experiment.settings_of(model.backbone))
    if not model.learned:
        return rerankers.create(model.method, **experiment.settings_of(model.method))
    return pairwise.create(model.method, model.size, local_dim, global_dim, experiment.settings_of(model.method))


def create_listwise(
    model: Model, widths: tuple[int, int], positions: int, settings: Mapping[str, Any], force_projection: bool = False
) -> ListwiseReranker:
    """Create a list-wise re-ranker with random weights.

    Args:
        model: says which.
        widths: of a global and of a local descriptor.
        positions: rows of the position table.
        settings: further arguments of the backbone.
        force_projection: see `ListwiseReranker`.
    """
    global_dim, local_dim = widths
    return ListwiseReranker(
        model.backbone,
        local_dim,
        global_dim,
        positions,
        model.size,
        settings,
        model.global_token,
        model.positions,
        model.score,
        dropout=model.dropout,
        force_projection=force_projection,
        matching=model.matching,
        kept_locals=model.kept_locals,
        residual=model.residual,
    )


def build_reranker(experiment: Experiment, seed: int) -> LearnedReranker:
    """Build a learned re-ranker with its starting weights, or load the one that is evaluated as it is."""
    settings = experiment.model
    if settings.checkpoint:
        loaded = native.load(Path(settings.checkpoint).expanduser(), **settings.checkpoint_options)
        if (method := loaded.spec.get("method", LISTWISE)) != settings.method:
            raise ValueError(f"'{settings.checkpoint}' is a '{method}' re-ranker; set Model.method = '{method}'.")
        return loaded
    torch.manual_seed(seed)
    model: Any = create_reranker(experiment, descriptor_widths(experiment), plan(experiment).positions)
    if settings.queries_and_keys:
        start_queries_and_keys(model, settings.queries_and_keys == EQUAL)
    if settings.language_model and isinstance(model, ListwiseReranker):
        language_models.start_from(model, Path(settings.language_model).expanduser())
    if settings.vision_model and isinstance(model, ListwiseReranker):
        vision_models.start_from(model, Path(settings.vision_model).expanduser())
    if settings.start and isinstance(model, ListwiseReranker):
        pretrained.start_from(model, pretrained.find(settings.start, settings.backbone, settings.size))
    return model


def count_parameters(experiment: Experiment) -> int:
    """Count the parameters of the re-ranker; whatever cannot be built or loaded is reported here."""
    for name, _ in experiment.reranking.first_stages:
        first_stage(experiment, name)
    own = experiment.model
    if own.checkpoint or own.language_model or own.vision_model or own.start:
        model: Any = build_reranker(experiment, seed=0)
        return sum(p.numel() for p in model.parameters())
    widths, positions = descriptor_widths(experiment), plan(experiment).positions
    if not experiment.model.learned:
        create_reranker(experiment, widths, positions)
        return 0
    try:
        with torch.device("meta"):  # without values, so that hundreds of millions are counted at once
            model = create_reranker(experiment, widths, positions)
    except RuntimeError:  # an encoder may compute with its values
        model = create_reranker(experiment, widths, positions)
    return sum(p.numel() for p in model.parameters())


def first_stage(experiment: Experiment, name: str) -> Reranker:
    """Build a stage of the cascade before the model: a re-ranker without weights, or the one of a run folder.

    Raises:
        ValueError: the name is neither.
    """
    if (Path(name).expanduser() / WEIGHTS).is_file():
        return native.load(Path(name).expanduser())
    if name not in (known := pairwise.without_weights()):
        raise ValueError(
            f"'{name}' in Reranking.first_stages is neither a re-ranker without weights nor a run folder with {WEIGHTS}"
            f"{suggest(name, known)}"
        )
    return rerankers.create(name, **experiment.settings_of(name))


def with_windows_and_stages(
    experiment: Experiment, model: Reranker, ensemble: Ensemble | StandardisedEnsemble | None = None
) -> Reranker:
    """Return the re-ranker of whole shortlists: the model in windows, after the first stages of the cascade.

    Args:
        experiment: says which.
        model: re-ranks one pass.
        ensemble: sorts every window; None = the model's own scores do.
    """
    settings = experiment.reranking
    listwise = isinstance(model, ListwiseReranker)
    if (settings.window and listwise) or ensemble:
        size = settings.pass_size if listwise else settings.candidates  # a pair's score is the same in any window
        model = Windows(model, size, settings.stride or max(size // 2, 1), settings.window_order, ensemble)
    if not settings.first_stages:
        return model
    stages: list[tuple[Reranker, int | None]] = []
    for name, count in settings.first_stages:
        stage = first_stage(experiment, name)
        stage = stage.to(distributed.device()) if isinstance(stage, LearnedReranker) else stage
        stages.append((stage, count or settings.candidates))
    return Cascade([*stages, (model, settings.candidates)])


def batch_of_lists(experiment: Experiment, model: Reranker) -> int:
    """Return how many lists of this experiment the model reads at a time."""
    return lists_at_once(model, plan(experiment).tokens_a_list, descriptor_widths(experiment))


def build_searches(
    experiment: Experiment,
    benchmark: Benchmark,
    queries: SearchedTable,
    gallery: SearchedTable,
    neighbours: Neighbours | None = None,
) -> dict[str, Search]:
    """Search under each protocol in which some query has a positive.

    Args:
        experiment: says how deep.
        benchmark: says what is right.
        queries: descriptors of its queries.
        gallery: descriptors of its gallery.
        neighbours: of all queries, from a file; None = they are searched.

    Raises:
        NoPositives: the first protocol has no query with a positive.
    """
    searches: dict[str, Search] = {}
    for protocol in benchmark.protocols:
        try:
            depth = experiment.reranking.depth
            once = not benchmark.validation  # where every process measures
            searches[protocol] = Search.build(benchmark, queries, gallery, depth, protocol, neighbours, once)
        except NoPositives:
            if not searches:
                raise
            log.warning("Under '%s' no query has a positive, so this protocol is left out.", protocol)
    first = next(iter(searches.values()))
    needed = benchmark.suite.depth(first.positives, len(gallery) - (benchmark.self_index is not None))
    if distributed.first() and (listed := first.neighbours.indices.shape[1]) < needed:
        log.warning(
            "The shortlists have %d images and %s needs %d: right images that are not listed count as missed, so "
            "numbers are below those of a whole ranking.",
            listed,
            benchmark.suite.main,
            needed,
        )
    return searches


def describe(experiment: Experiment, images: ImageSet, in_training: bool = False) -> tuple[Descriptors, np.ndarray]:
    """Describe images.

    Args:
        experiment: says with which extractor, and with which trained embedder.
        images: the images.
        in_training: they are the images that the embedder was trained on.

    Returns:
        The descriptors, and (N,) the number of the embedder that made each; only those of one can be compared.
    """
    if experiment.embedder:
        return describe_unseen(Path(experiment.embedder), experiment.extractor, images, in_training)
    return experiment.extractor.extract(images), np.zeros(len(images), dtype=np.int64)


def shortlist_settings(experiment: Experiment) -> dict[str, Any]:
    """Return the settings that the shortlists follow from, by name: all but those of the local descriptors."""
    source = experiment.files or experiment.extractor
    own = {"data": experiment.data, "candidates": experiment.reranking.depth, "embedder": experiment.embedder}
    return {**own, **source.search_settings}


def weights_fingerprint(experiment: Experiment) -> str:
    """Return the checksums of the weight files as comments of a configuration: with another file it is another run."""
    folder = Path(experiment.embedder) if experiment.embedder else None
    own = Path(experiment.extractor.weights).expanduser()
    files = [folder / name for name in (WHOLE, *FITTED_ON)] if folder else [own]
    files.append(Path(experiment.extractor.detector).expanduser())
    files += [Path(name).expanduser() / WEIGHTS for name, _ in experiment.reranking.first_stages]
    if experiment.model.checkpoint:
        path = Path(experiment.model.checkpoint).expanduser()
        files.append(path / WEIGHTS if path.is_dir() else path)
    if experiment.model.vision_model:
        files.append(Path(experiment.model.vision_model).expanduser())
    if experiment.model.language_model:
        path = Path(experiment.model.language_model).expanduser()
        files += [path / name for name in ("config.json", WEIGHTS, "pytorch_model.bin")]
    used = [f"# {f}: sha256 {hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in files if f.is_file()]
    if experiment.model.start:  # without its path: the package is elsewhere on each machine
        path = pretrained.find(experiment.model.start, experiment.model.backbone, experiment.model.size)
        used += [f"# Model.start: sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}\n"] if path.is_file() else []
    return "".join(used) + (experiment.files.fingerprint if experiment.files else "")
