"""The settings of an experiment in groups, and the plan that follows from them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from backbones import ListLayout
from backbones.registry import suggest
from backbones.settings import check_types
from locore.datasets import Benchmark, ImageSet, benchmarks
from locore.descriptors.cross_fit import WHOLE
from locore.descriptors.extractor import Extractor
from locore.descriptors.files import Files
from locore.reranking.match_features import COUNTS
from locore.reranking.pairwise import is_learned
from locore.reranking.reranker import rerankers
from locore.reranking.windows import ORDERS
from locore.training.lists import Sampling
from locore.training.loop import Training

LISTWISE = "listwise"
# Our own list-wise rows, as gin/head/residual.gin has them; the defaults below are the paper's.
RESIDUAL_HEAD: dict[str, Any] = {"residual": 20.0, "matching": "list", "kept_locals": 12, "positions": "none"}
DTYPES = ("float32", "bfloat16")
EQUAL, _ = QUERIES_AND_KEYS = ("equal", "independent")
CHOSEN = "chosen"  # of Reranking.gate
ASKED = ("all", "even", "odd")
HELD_OUT, BENCHMARK, NOTHING = VALIDATIONS = ("held-out classes", "benchmark", "none")


@dataclass(frozen=True)
class Data:
    """A registered benchmark with its settings.

    Attributes:
        benchmark: registered name.
        settings: arguments of the benchmark.
        asked: the classes whose images are queries: "all", or "even" or "odd" for every second one. Work looks at one
            half, and the other is kept for a final measurement.
        validation: what a training is validated on, and what the ensemble is chosen on: "held-out classes" = a tenth of
            the training classes, which are not trained on; "benchmark" = the queries of this benchmark, which has to
            be one for validation, as the public part of `gldv2` is; "none" = nothing: the last weights are kept.
    """

    benchmark: str = "glyphs"
    settings: Mapping[str, Any] = field(default_factory=dict)
    asked: str = "all"
    validation: str = HELD_OUT

    def __post_init__(self):
        check_types(self)
        for name, known in (("asked", ASKED), ("validation", VALIDATIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Unknown Data.{name} '{value}'{suggest(value, known)}")
        benchmarks.check(self.benchmark, **self.settings)

    def load(self) -> Benchmark:
        """Load the benchmark.

        Raises:
            ValueError: a file that it needs is missing or damaged.
        """
        benchmark = benchmarks.create(self.benchmark, **self.settings)
        return benchmark if self.asked == "all" else benchmark.asked_by_half(self.asked)

    def training_images(self, benchmark: Benchmark) -> ImageSet:
        """Return the training images of the loaded benchmark.

        Raises:
            ValueError: it has none.
        """
        if benchmark.train is None:
            raise ValueError(
                f"The benchmark '{self.benchmark}' has no training images; give a trained Model.checkpoint."
            )
        return benchmark.train


@dataclass(frozen=True)
class Model:
    """The re-ranker and what it starts from.

    Attributes:
        method: "listwise", or the name of a registered re-ranker, learned or not.
        backbone: registered name of the sequence encoder of a list-wise re-ranker.
        size: named size of the encoder, or of another learned re-ranker.
        positions: see `ListEmbedding`.
        min_positions: rows of the position table at least, where a list has fewer tokens.
        score: see `ListwiseReranker`.
        global_token: see `ListEmbedding`.
        dropout: see `ListwiseReranker`, in [0, 1].
        matching: see `ListEmbedding`.
        kept_locals: see `ListEmbedding`.
        residual: see `ListwiseReranker`.
        whitening: start the projections as a whitening of the training descriptors: 1 = whitened, 0 = only scaled; None
            = start at random.
        queries_and_keys: how query and key projections start, "equal" or "independent", see `start_queries_and_keys`;
            None = as the re-ranker has it: ours equal, rivals as published.
        start: weights of a list-wise re-ranker at the start: None = random; "synthetic" = pretrained on synthetic
            lists, which the package carries; or a folder of experiments.pretrain, for other ones.
        language_model: folder with the weights of a Longformer or RoBERTa to start from.
        vision_model: file with the weights of a Vim or VideoMamba, from which the layers of `mamba` start, or of a
            Vision-RWKV, for `rwkv`.
        checkpoint: a run folder or published weights that are evaluated as they are; None = a re-ranker is trained.
        checkpoint_options: settings that published weights do not show, see `locore.load`.
    """

    method: str = LISTWISE
    backbone: str = "mamba"
    size: str = "mini"
    positions: str = "absolute"
    min_positions: int = 0
    score: str = "mean"
    global_token: bool = True
    dropout: float = 0.0
    matching: str = "none"
    kept_locals: int | None = None
    residual: float | None = None
    whitening: float | None = 1.0
    queries_and_keys: str | None = None
    start: str | None = None
    language_model: str | None = None
    vision_model: str | None = None
    checkpoint: str | None = None
    checkpoint_options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        check_types(self)
        known = [LISTWISE, *rerankers.available()]
        if self.method not in known:
            raise ValueError(f"Unknown Model.method '{self.method}'{suggest(self.method, known)}")
        if not self.learned and self.checkpoint:
            raise ValueError(f"'{self.method}' has no weights; leave Model.checkpoint out.")
        if self.matching not in COUNTS:
            raise ValueError(f"Unknown Model.matching '{self.matching}'{suggest(self.matching, COUNTS)}")
        if self.kept_locals is not None and self.kept_locals < 1:
            raise ValueError(f"Model.kept_locals = {self.kept_locals} must be at least 1, or None for all.")
        if self.residual is not None and not 0 < self.residual < 1e6:
            raise ValueError(f"Model.residual = {self.residual} must be above 0, or None for none.")
        others = self.language_model or self.vision_model or self.checkpoint
        if self.start and (not self.listwise or others or self.whitening is None):
            raise ValueError(
                "Model.start is for list-wise re-rankers whose projections whiten; leave Model.language_model, "
                "Model.vision_model and Model.checkpoint out, and Model.whitening as it is."
            )
        if self.queries_and_keys not in (None, *QUERIES_AND_KEYS):
            raise ValueError(
                f"Unknown Model.queries_and_keys '{self.queries_and_keys}'"
                f"{suggest(self.queries_and_keys, QUERIES_AND_KEYS)}"
            )
        for name in ("whitening", "dropout"):
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1:
                raise ValueError(f"Model.{name} = {value} must be in [0, 1].")

    @property
    def listwise(self) -> bool:
        """Whether it reads the whole list with a sequence encoder."""
        return self.method == LISTWISE

    @property
    def learned(self) -> bool:
        """Whether it has weights."""
        return self.listwise or is_learned(self.method)

    @property
    def start_name(self) -> str:
        """What the weights start from, as tables show it: "random", the name of other weights, or "" without any."""
        if not self.learned:
            return ""
        pretrained = (self.language_model or self.vision_model or self.start) if self.listwise else None
        return Path(self.checkpoint or pretrained or "random").name

    @property
    def name(self) -> str:
        """The registered name that its settings belong to: of the backbone, or of the re-ranker."""
        return self.backbone if self.listwise else self.method


@dataclass(frozen=True)
class Reranking:
    """How the shortlists are re-ranked.

    Attributes:
        candidates: number of candidates of each query that are re-ranked.
        window: K of one pass of a list-wise re-ranker, if that is fewer; None = all candidates in one pass. Other
            re-rankers read the whole list.
        stride: number of places that the next window moves by; None = half a window.
        window_order: order in which windows follow each other, see `Windows`.
        first_stages: a cascade: names of re-rankers without weights, or run folders, that reorder the list first, each
            with the number of candidates that it reorders (None = all). They take no part in training.
        ensemble: also evaluate the ensemble with the global similarity; with windows this takes as long again.
        alpha: weight of the global similarity in the ensemble, in [0, 1]; None = chosen on held-out training classes
            or, where nothing is trained, on all training images or on a benchmark that is for validation; a re-ranker
            without weights has a default where there are none of these.
        temperature: of `Ensemble`, given together with alpha; a re-ranker without weights has a `StandardisedEnsemble`.
        gate: also evaluate with lists left as they are whose first candidate has at least this similarity; "chosen" =
            the similarity is chosen where the ensemble is; None = all lists are re-ranked.
        dtype: of the weights in evaluation, "float32" or "bfloat16".
    """

    candidates: int = 24
    window: int | None = None
    stride: int | None = None
    window_order: str = "end-to-start"
    first_stages: Sequence[tuple[str, int | None]] = ()
    ensemble: bool = True
    alpha: float | None = None
    temperature: float | None = None
    gate: float | str | None = None
    dtype: str = "float32"

    def __post_init__(self):
        check_types(self)
        if self.candidates < 2:
            raise ValueError(f"Reranking.candidates = {self.candidates}: one image has no order; give 2 or more.")
        if self.window is not None and not 1 < self.window <= self.candidates:
            raise ValueError(f"Reranking.window = {self.window} must be 2 to {self.candidates}, the candidates.")
        if self.stride is not None and not 1 <= self.stride <= (self.window or 0):
            raise ValueError(f"Reranking.stride = {self.stride} must be 1 to Reranking.window, {self.window}.")
        for name, known in (("window_order", ORDERS), ("dtype", DTYPES)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"Unknown Reranking.{name} '{value}'{suggest(value, known)}")
        for stage in self.first_stages:
            match stage:
                case (str(), int() | None as count) if count is None or count > 1:
                    pass
                case _:
                    raise ValueError(
                        f"{stage!r} is not a stage of Reranking.first_stages; write [('superglobal', 400)], a "
                        "re-ranker and the number of candidates that it reorders."
                    )
        if self.alpha is not None and not 0 <= self.alpha <= 1:
            raise ValueError(f"Reranking.alpha = {self.alpha} must be in [0, 1].")
        if self.temperature is not None and not 0 < self.temperature < 1e9:
            raise ValueError(f"Reranking.temperature = {self.temperature} must be above 0.")
        if isinstance(self.gate, str) and self.gate != CHOSEN:
            raise ValueError(f"Reranking.gate = '{self.gate}' must be a similarity, '{CHOSEN}', or None.")
        if self.alpha is None and self.temperature is not None:
            raise ValueError("Reranking.alpha and Reranking.temperature go together; give both or neither.")

    @property
    def pass_size(self) -> int:
        """K of one pass."""
        return self.window or self.candidates

    @property
    def depth(self) -> int:
        """Length of the shortlists: the longest stage of a cascade."""
        return max([self.candidates, *(count or self.candidates for _, count in self.first_stages)])


@dataclass(frozen=True)
class Outputs:
    """Files that a run writes beside its metrics and pictures.

    Attributes:
        neighbours: length of each query's list in `nn_reranked.pkl`: the re-ranked candidates and further images of the
            search, junk among them, each with its similarity. Another experiment reads the file as `Files.shortlists`.
            0 = no file.
        trec: also write rankings and right answers in TREC's formats, into the folder `trec`.
        json: also write the rankings of the first protocol as ILIAS's evaluation reads them, into the folder `json`.
    """

    neighbours: int = 0
    trec: bool = False
    json: bool = False

    def __post_init__(self):
        check_types(self)


@dataclass(frozen=True)
class Experiment:
    """An experiment; the seed and the run folder are given when it runs.

    Attributes:
        model: the re-ranker.
        reranking: how shortlists are re-ranked.
        outputs: further files.
        data: the benchmark.
        extractor: of the descriptors.
        sampling: of the training lists.
        training: of the re-ranker.
        files: descriptors that were extracted before; None = the extractor makes them.
        embedder: run folder of `experiments.embed`, whose trained network the extractor uses.
        embedder_lr_scale: learning rate of the vision model over that of the re-ranker; 0 = it is not trained.
        settings: arguments of registered encoders and re-rankers by their names, where they differ from the defaults.
    """

    model: Model = field(default_factory=Model)
    reranking: Reranking = field(default_factory=Reranking)
    outputs: Outputs = field(default_factory=Outputs)
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=Extractor)
    sampling: Sampling = field(default_factory=Sampling)
    training: Training = field(default_factory=Training)
    files: Files | None = None
    embedder: str | None = None
    embedder_lr_scale: float = 0.0
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self):
        check_types(self)
        if self.model.learned and self.reranking.alpha is not None and self.reranking.temperature is None:
            raise ValueError("Reranking.alpha and Reranking.temperature go together; give both or neither.")
        if not self.model.learned and self.reranking.ensemble and self.reranking.temperature is not None:
            raise ValueError(f"'{self.model.method}' gives no logits; leave Reranking.temperature out.")
        if not 0 <= self.embedder_lr_scale <= 1:
            raise ValueError(f"Experiment.embedder_lr_scale = {self.embedder_lr_scale} must be in [0, 1].")
        if self.embedder_lr_scale and not self.model.learned:
            raise ValueError(f"'{self.model.method}' has no weights; leave Experiment.embedder_lr_scale out.")
        if self.embedder_lr_scale and self.sampling.views > 1:
            raise ValueError("Sampling.views need fixed descriptors; leave Experiment.embedder_lr_scale at 0.")
        if self.embedder:
            embedder_metrics(Path(self.embedder))
            weights = str(Path(self.embedder) / WHOLE)
            object.__setattr__(self, "extractor", replace(self.extractor, weights=weights))
        if self.embedder_lr_scale and self.data.validation == BENCHMARK:
            raise ValueError(
                f"Data.validation = '{BENCHMARK}' needs fixed descriptors; leave Experiment.embedder_lr_scale at 0."
            )
        if self.files and self.trains and not self.files.train_global:
            raise ValueError(
                "Experiment.files have no descriptors of training images; give Files.train_global and train_local, or "
                "Model.checkpoint."
            )
        if self.files and (self.embedder_lr_scale or self.sampling.views > 1):
            raise ValueError(
                "The descriptors of Experiment.files are fixed; leave Experiment.embedder_lr_scale and Sampling.views "
                "out."
            )
        if self.trains and self.data.validation == NOTHING:
            chosen = {
                "Reranking.ensemble": self.reranking.ensemble and self.reranking.alpha is None,
                "Reranking.gate": self.reranking.gate == CHOSEN,
                "Training.patience": self.training.patience > 0,
                "Training.monitor": self.training.monitor is not None,
            }
            if asked := [name for name, needed in chosen.items() if needed]:
                raise ValueError(
                    f"{asked[0]} needs a validation, and Data.validation is '{NOTHING}'; change one of them."
                )
        if self.outputs.neighbours and self.outputs.neighbours < self.reranking.depth:
            raise ValueError(
                f"Outputs.neighbours = {self.outputs.neighbours} are fewer than the {self.reranking.depth} candidates; "
                "give more."
            )
        plan(self)

    @property
    def trains(self) -> bool:
        """Whether a re-ranker is trained."""
        return self.model.learned and not self.model.checkpoint

    def settings_of(self, name: str) -> dict[str, Any]:
        """Return the arguments of a registered encoder or re-ranker."""
        return dict(self.settings.get(name, {}))


def embedder_metrics(folder: Path) -> dict:
    """Read the metrics of a finished run of `experiments.embed`.

    Raises:
        ValueError: the run has not finished.
    """
    try:
        return json.loads((folder / "metrics.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"'{folder}' is not a finished run of experiments.embed; give its --out folder, or let it finish first."
        ) from None


@dataclass(frozen=True)
class Plan:
    """Sizes that follow from the settings.

    Attributes:
        depth: length of the shortlists.
        pass_size: K of one pass.
        layout: of the sequence of one pass.
        positions: rows of the position table: tokens of the longest list, in training or in evaluation.
        tokens_a_list: tokens of a list, which bound how many lists are read at a time; more where a cascade reads more
            than the model does.
    """

    depth: int
    pass_size: int
    layout: ListLayout
    positions: int
    tokens_a_list: float


def plan(experiment: Experiment) -> Plan:
    """Return the sizes that follow from an experiment's settings."""
    reranking = experiment.reranking
    in_training, _ = experiment.sampling.sizes(reranking.pass_size)
    count = (experiment.files or experiment.extractor).locals_per_image
    if experiment.model.listwise and experiment.model.kept_locals:
        count = min(count, experiment.model.kept_locals)
    layout = ListLayout(count + 1 + experiment.model.global_token, 1 + reranking.pass_size)
    longest = (1 + max(reranking.pass_size, in_training)) * layout.block
    return Plan(
        depth=reranking.depth,
        pass_size=reranking.pass_size,
        layout=layout,
        positions=max(longest, experiment.model.min_positions),
        tokens_a_list=layout.tokens * (reranking.depth / reranking.candidates),
    )
