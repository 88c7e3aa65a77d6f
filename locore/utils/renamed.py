"""Settings that once had other names: old gin files, stored configurations, checkpoints and cache keys stay readable.

`RENAMED` is the only table of old names. A setting is renamed by adding one line to it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

RENAMED = {
    "Experiment.method": "Model.method",
    "Experiment.backbone": "Model.backbone",
    "Experiment.size": "Model.size",
    "Experiment.positions": "Model.positions",
    "Experiment.positions_at_least": "Model.min_positions",
    "Experiment.score": "Model.score",
    "Experiment.global_token": "Model.global_token",
    "Experiment.dropout": "Model.dropout",
    "Experiment.whitening": "Model.whitening",
    "Experiment.language_model": "Model.language_model",
    "Experiment.reranker": "Model.checkpoint",
    "Experiment.published": "Model.checkpoint_options",
    "Experiment.candidates": "Reranking.candidates",
    "Experiment.window": "Reranking.window",
    "Experiment.way": "Reranking.window_order",
    "Experiment.before": "Reranking.first_stages",
    "Experiment.ensemble": "Reranking.ensemble",
    "Experiment.alpha": "Reranking.alpha",
    "Experiment.temperature": "Reranking.temperature",
    "Experiment.evaluated_in": "Reranking.dtype",
    "Experiment.neighbours": "Outputs.neighbours",
    "Experiment.trec": "Outputs.trec",
    "Experiment.embedder_rate": "Experiment.embedder_lr_scale",
    "Training.batch": "Training.batch_size",
    "Training.warmup": "Training.warmup_steps",
    "Training.clip": "Training.max_grad_norm",
    "Training.average": "Training.ema_decay",
    "Training.accumulation": "Training.grad_accumulation_steps",
    "Training.precision": "Training.mixed_precision",
    "Sampling.fewest": "Sampling.min_positives",
    "Sampling.most": "Sampling.max_positives",
    "Sampling.shuffled": "Sampling.shuffle",
    "Extractor.proportions": "Extractor.keep_aspect_ratio",
    "Extractor.locals_": "Extractor.local_features",
    "Extractor.grid": "Extractor.grid_size",
    "Extractor.top": "Extractor.top_k",
    "Extractor.batch": "Extractor.batch_size",
    "Finetuning.per_class": "Finetuning.images_per_class",
    "Finetuning.frozen": "Finetuning.freeze_backbone",
    "Finetuning.frozen_batch_norm": "Finetuning.freeze_batch_norm",
    "Finetuning.head_rate": "Finetuning.head_lr_scale",
    "Finetuning.smallest_crop": "Finetuning.min_crop_area",
    "Finetuning.flip": "Finetuning.horizontal_flip",
    "Embedding.halves": "Embedding.cross_fit",
    "Extraction.whitened": "Extraction.whiten",
    "Files.count": "Files.locals_per_image",
    "gldv2.left_out": "gldv2.exclude_landmarks",
    "mutual_neighbours.least": "mutual_neighbours.min_similarity",
    "k_reciprocal.share": "k_reciprocal.distance_weight",
    "Descriptors.global_": "Descriptors.global_descriptor",
}
_OLD = re.compile(
    r"(?<![\w.])(?:" + "|".join(re.escape(name) for name in sorted(RENAMED, key=len, reverse=True)) + r")(?!\w)"
)


def rename_settings(text: str) -> tuple[str, list[str]]:
    """Give the settings in gin text their names of today.

    Args:
        text: lines of a gin file or of a stored configuration.

    Returns:
        The text, and the old names that were in it, each once.
    """
    found = list(dict.fromkeys(_OLD.findall(text)))
    return _OLD.sub(lambda match: RENAMED[match[0]], text), found


def rename_keys(owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of a class, as a checkpoint or a cache holds them, their names of today.

    Args:
        owner: name of the class.
        settings: by name, old or new.
    """
    return {RENAMED.get(f"{owner}.{name}", f".{name}").rpartition(".")[2]: value for name, value in settings.items()}


def original_keys(owner: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Give the settings of a class the names that they had at first, so that a cache key stays what it was.

    Args:
        owner: name of the class.
        settings: by their names of today.
    """
    first = {new: old.rpartition(".")[2] for old, new in RENAMED.items()}
    return {first.get(f"{owner}.{name}", name): value for name, value in settings.items()}
