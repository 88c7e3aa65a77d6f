"""One experiment: its settings, and what follows from them; `experiments.running` runs it."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import gin
import numpy as np
import torch

from backbones import ListLayout
from backbones.registry import suggest
from backbones.settings import check_types
from experiments.configuration import SETTINGS, built, extractor, sampling, training
from experiments.data import Data
from experiments.described import Files
from locore import checkpoints, processes
from locore.datasets import Benchmark, ImageSet
from locore.descriptors import Descriptors, Extractor
from locore.descriptors.store import SearchedTable
from locore.descriptors.unseen import FITTED_ON, WHOLE, describe
from locore.evaluation import NothingToAsk, Reranked, Search
from locore.language_model import start_from
from locore.reranking import Ensemble, ListwiseReranker, Reranker, Windows, pairwise
from locore.reranking.cascade import Cascade
from locore.reranking.listwise import WEIGHTS
from locore.reranking.pairwise import PairwiseReranker, is_learned
from locore.reranking.reranker import rerankers
from locore.reranking.windows import WAYS
from locore.retrieval import Neighbours
from locore.training import Training
from locore.training_lists import Sampling

log = logging.getLogger(__name__)

VALUES = 2**22  # values of a layer's tokens at a time in evaluation: as much memory for every length and width
LISTWISE = "listwise"
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@gin.configurable
@dataclass
class Experiment:
    """What to run; `seed` and the run folder come from the command line.

    Attributes:
        method: "listwise", or a registered re-ranker, learned or not.
        backbone: registered name of the list-wise one's encoder. size: of the encoder, or of another that is learned.
        candidates: how many are re-ranked.
        window: K of one pass of the list-wise one where that are more, see `Windows`; None = all candidates in one.
            Other methods read the whole list at once. way: in which order windows follow each other.
        before: re-rankers without weights, or run folders, that reorder the list first, each with how much of it,
            None = all candidates: a `Cascade`. They take no part in training.
        ensemble: also evaluate the ensemble with the global score; with windows it takes as long again.
        alpha, temperature: of the ensemble; None = chosen on held-out training classes, or where nothing is trained, on
            a benchmark that is there to choose by (gldv2's public part).
        reranker: a run folder, or published weights, evaluated as they are; None = one is trained.
        published: what `locore.load` has to be told of published weights.
        files: descriptors that someone has extracted; None = the extractor's.
        positions, score, global_token, dropout: see `ListwiseReranker`.
        positions_at_least: rows of its position table, where a list has fewer tokens.
        whitening: start the projections as a whitening of the training descriptors, 1 = wholly, 0 = only scaled; None =
            start them at random.
        language_model: a folder with Longformer's or RoBERTa's weights to start from, see `locore.language_model`.
        embedder: a run folder of `experiments.embed`, whose networks take the place of the extractor's.
        embedder_rate: learning rate of the vision model over the re-ranker's, 0 = it stays as it is.
        neighbours: how many of each query's are left in `nn_reranked.pkl`, the candidates as they were re-ranked and
            others behind them, each with its similarity in the search; what is junk stands among them. Another
            experiment reads them as `Files.shortlists`. 0 = no file.
        trec: also leave rankings and right answers as TREC has them, in the folder `trec`.
        evaluated_in: precision of the trained model in evaluation, "float32" or "bfloat16".
    """

    method: str = LISTWISE
    backbone: str = "mamba"
    size: str = "mini"
    candidates: int = 24
    window: int | None = None
    way: str = "end-to-start"
    before: Sequence[tuple[str, int | None]] = ()
    ensemble: bool = True
    alpha: float | None = None
    temperature: float | None = None
    reranker: str | None = None
    published: dict[str, Any] = field(default_factory=dict)
    files: Files | None = None
    positions: str = "absolute"
    positions_at_least: int = 0
    score: str = "mean"
    global_token: bool = True
    dropout: float = 0.0
    whitening: float | None = 1.0
    language_model: str | None = None
    embedder: str | None = None
    embedder_rate: float = 0.0
    neighbours: int = 0
    trec: bool = False
    evaluated_in: str = "float32"
    data: Data = field(default_factory=Data)
    extractor: Extractor = field(default_factory=extractor)
    sampling: Sampling = field(default_factory=sampling)
    training: Training = field(default_factory=training)

    def __post_init__(self):
        check_types(self)
        if self.method not in (LISTWISE, *rerankers.available()):
            unknown = self.method
            raise ValueError(
                f"Unknown Experiment.method '{unknown}'{suggest(unknown, [LISTWISE, *rerankers.available()])}"
            )
        if self.candidates < 2:
            raise ValueError(f"Experiment.candidates = {self.candidates} have no order to change; give 2 or more.")
        self._before = [self._stage(stage) for stage in self.before]
        if self.way not in WAYS:
            raise ValueError(f"Unknown Experiment.way '{self.way}'{suggest(self.way, WAYS)}")
        self.has_weights = self.method == LISTWISE or is_learned(self.method)
        if not self.has_weights and (self.reranker or self.embedder_rate):
            raise ValueError(
                f"'{self.method}' has no weights; leave Experiment.reranker and Experiment.embedder_rate out."
            )
        self.trains = self.has_weights and not self.reranker
        if self.evaluated_in not in PRECISIONS:
            unknown = self.evaluated_in
            raise ValueError(f"Unknown Experiment.evaluated_in '{unknown}'{suggest(unknown, PRECISIONS)}")
        if self.embedder_rate and self.sampling.views > 1:
            raise ValueError("Sampling.views are of descriptors that stay, so leave Experiment.embedder_rate at 0.")
        if self.embedder:
            self.trained = _finished(Path(self.embedder))
            self.extractor = replace(self.extractor, weights=str(Path(self.embedder) / WHOLE))
        for name in ("alpha", "whitening", "dropout", "embedder_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"Experiment.{name} = {value} must be in 0 to 1.")
        if self.temperature is not None and not 0 < self.temperature < 1e9:
            raise ValueError(f"Experiment.temperature = {self.temperature} must be above 0.")
        if (self.alpha is None) != (self.temperature is None):
            raise ValueError("Experiment.alpha and Experiment.temperature go together.")
        if self.files and self.trains and not self.files.train_global:
            raise ValueError(
                "Experiment.files have no training images' descriptors; give Files.train_global and train_local, or "
                "Experiment.reranker."
            )
        if self.files and (self.embedder_rate or self.sampling.views > 1):
            raise ValueError(
                "Experiment.files stay as they are; leave Experiment.embedder_rate and Sampling.views out."
            )
        if self.window is not None and not 1 < self.window <= self.candidates:
            raise ValueError(f"Experiment.window = {self.window} must be 2 to {self.candidates}, the candidates.")
        self.depth = max([self.candidates, *(count for _, count in self._before)])  # of the shortlists
        if self.neighbours and self.neighbours < self.depth:
            raise ValueError(
                f"Experiment.neighbours = {self.neighbours} are fewer than the {self.depth} candidates; give more."
            )
        self.pass_size = self.window or self.candidates
        trained, _ = self.sampling.sizes(self.pass_size)
        locals_ = self.files.count if self.files else self.extractor.locals_per_image
        self.layout = ListLayout(locals_ + 1 + self.global_token, 1 + self.pass_size)
        longest = (1 + max(self.pass_size, trained)) * self.layout.block
        self.tokens_at_most = max(longest, self.positions_at_least)

    @property
    def searched(self) -> dict[str, Any]:
        """What the shortlists follow from, by name: all but the local descriptors."""
        known = self.files.searched if self.files else {}
        made = {} if self.files else self.extractor.searched
        return {"data": self.data, "candidates": self.depth, "embedder": self.embedder, **known, **made}

    @property
    def backbone_settings(self) -> dict[str, Any]:
        """Of the list-wise one's encoder, where they are not its size's."""
        return SETTINGS[self.backbone]() if self.backbone in SETTINGS else {}

    def make(self, widths: tuple[int, int], positions: int) -> Reranker:
        """The re-ranker with random weights, or without any.

        Args:
            widths: of a global and of a local descriptor. positions: rows of a list-wise one's position table.
        """
        global_dim, local_dim = widths
        if self.method == LISTWISE:
            return ListwiseReranker(
                self.backbone,
                local_dim,
                global_dim,
                positions,
                self.size,
                self.backbone_settings,
                self.global_token,
                self.positions,
                self.score,
                dropout=self.dropout,
            )
        if not self.has_weights:
            return self._untrained(self.method)
        return pairwise.create(self.method, self.size, local_dim, global_dim, SETTINGS[self.method]())

    def model(self, seed: int) -> ListwiseReranker | PairwiseReranker:
        """The re-ranker with its starting weights, or the one that is evaluated as it is."""
        if self.reranker:
            loaded = checkpoints.load(Path(self.reranker).expanduser(), **self.published)
            if (method := loaded.spec.get("method", LISTWISE)) != self.method:
                raise ValueError(f"'{self.reranker}' is a '{method}'; give Experiment.method = '{method}'.")
            return loaded
        torch.manual_seed(seed)
        model = self.make(self.widths, self.tokens_at_most)
        assert isinstance(model, ListwiseReranker | PairwiseReranker)
        if self.language_model and isinstance(model, ListwiseReranker):
            start_from(model, Path(self.language_model).expanduser())
        return model

    @property
    def widths(self) -> tuple[int, int]:
        """Of a global and of a local descriptor."""
        return self.files.widths if self.files else self.extractor.sizes

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """Parameters of the re-ranker, and width of its tokens, or of the descriptors where it has none."""
        if not self.has_weights:
            _ = self._untrained(self.method)
            return 0, sum(self.widths)
        if self.reranker or self.language_model:  # what cannot be loaded is said here
            model = self.model(seed=0)
        else:
            widths = self.widths
            try:
                with torch.device("meta"):  # nothing is filled in, so that hundreds of millions are counted at once
                    made = self.make(widths, self.tokens_at_most)
            except RuntimeError:  # an encoder may compute with what it is filled with
                made = self.make(widths, self.tokens_at_most)
            assert isinstance(made, ListwiseReranker | PairwiseReranker)
            model = made
        return sum(p.numel() for p in model.parameters()), model.width

    def _stage(self, stage: Any) -> tuple[Reranker, int]:
        """A stage of a cascade.

        Raises:
            ValueError: it is none, or the re-ranker's settings are wrong.
        """
        match stage:
            case (str(name), int() | None as count) if count is None or count > 1:
                return self._first(name), count or self.candidates
            case _:
                raise ValueError(
                    f"{stage!r} is no stage of Experiment.before; write [('superglobal', 400)], a re-ranker and how "
                    "many candidates it reorders."
                )

    def _first(self, name: str) -> Reranker:
        """A re-ranker that is asked before the others: one without weights, or one of a run folder."""
        if (Path(name).expanduser() / WEIGHTS).is_file():
            return checkpoints.load(Path(name).expanduser())
        if name not in (known := pairwise.without_weights()):
            raise ValueError(
                f"'{name}' of Experiment.before is neither a re-ranker without weights nor a run folder with "
                f"{WEIGHTS}{suggest(name, known)}"
            )
        return self._untrained(name)

    def _untrained(self, method: str) -> Reranker:
        return rerankers.create(method, **SETTINGS[method]())

    def weights_used(self) -> str:
        """What is in the files of weights, as lines of the configuration: another file there is another run."""
        folder = Path(self.embedder) if self.embedder else None
        files_ = [folder / f for f in (WHOLE, *FITTED_ON)] if folder else [Path(self.extractor.weights).expanduser()]
        files_.append(Path(self.extractor.detector).expanduser())
        files_ += [Path(name).expanduser() / WEIGHTS for name, _ in self.before]
        if self.reranker:
            path = Path(self.reranker).expanduser()
            files_.append(path / WEIGHTS if path.is_dir() else path)
        if self.language_model:
            path = Path(self.language_model).expanduser()
            files_ += [path / name for name in ("config.json", WEIGHTS, "pytorch_model.bin")]
        used = [f"# {f}: sha256 {hashlib.sha256(f.read_bytes()).hexdigest()}\n" for f in files_ if f.is_file()]
        return "".join(used) + (self.files.said if self.files else "")

    def rerank(self, searched: Search, reranker: Reranker, candidates: int) -> Reranked:
        """Re-rank the first candidates of every list, as many lists at a time as fit into a bounded memory."""
        return searched.rerank(reranker, candidates, self.at_once, self.device)

    @property
    def at_once(self) -> int:
        """Lists that are re-ranked at a time."""
        longer = self.depth / self.candidates  # which a cascade reads and the model does not
        return max(1, int(VALUES / (self.layout.tokens * self.sizes[1] * longer)))

    @property
    def precision(self) -> torch.dtype:
        """Of the trained model in evaluation."""
        return PRECISIONS[self.evaluated_in]

    @cached_property
    def device(self) -> torch.device:
        """Where the re-ranker is trained and evaluated."""
        return processes.device()

    def searches(
        self,
        benchmark: Benchmark,
        queries: SearchedTable,
        gallery: SearchedTable,
        listed: Neighbours | None = None,
    ) -> dict[str, Search]:
        """The search of each protocol under which something can be asked, of the first in any case.

        Args:
            listed: see `Search.of`.
        """
        groups, own = benchmark.queries.labels, benchmark.self_index
        searches: dict[str, Search] = {}
        for protocol, answers in benchmark.protocols.items():
            try:
                searches[protocol] = Search.of(
                    queries, gallery, answers, groups, own, self.depth, benchmark.measures, listed
                )
            except NothingToAsk:
                if not searches:
                    raise
                log.warning("Under '%s' no query has a right image, so it is left out.", protocol)
        return searches

    def whole(self, model: Reranker, ensemble: Ensemble | None = None) -> Reranker:
        """The model as it re-ranks all candidates, behind those that are asked before it."""
        if (self.window and isinstance(model, ListwiseReranker)) or ensemble:
            model = Windows(model, self.pass_size, self.pass_size // 2, self.way, ensemble)
        if not self.before:
            return model
        first = [(self._moved(stage), count) for stage, count in self._before]
        return Cascade([*first, (model, self.candidates)])

    def _moved(self, model: Reranker) -> Reranker:
        """On the device of the others, where it has weights."""
        return model.to(self.device) if isinstance(model, ListwiseReranker | PairwiseReranker) else model

    def describe(self, images: ImageSet, fitted: bool = False) -> tuple[Descriptors, np.ndarray]:
        """Descriptors, and (N,) by which embedder the global ones were made; only the same one's can be compared."""
        if self.embedder:
            return describe(Path(self.embedder), self.extractor, images, fitted)
        return self.extractor.extract(images), np.zeros(len(images), dtype=np.int64)


def _finished(folder: Path) -> dict:
    """What `experiments.embed` measured.

    Raises:
        ValueError: it has not been there, or was broken off.
    """
    try:
        return json.loads((folder / "metrics.json").read_text())
    except (OSError, json.JSONDecodeError):
        raise ValueError(
            f"'{folder}' is no finished run of experiments.embed; give its --out, or let it end first."
        ) from None


def prepare(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Experiment, str]:
    """The experiment of these gin files, and its operative configuration, which says whether two runs are the same.

    Raises:
        ValueError: a file, a name or a value is wrong.
    """

    def make() -> Experiment:
        experiment = Experiment()
        _ = experiment.sizes  # what cannot be built is said now
        return experiment

    experiment, config = built(make, gin_files, overrides, seed)
    return experiment, config + experiment.weights_used()
