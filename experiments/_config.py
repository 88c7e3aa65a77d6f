"""gin, known to this file alone: it binds the library's plain dataclasses from outside and hands their settings in."""

from __future__ import annotations

import inspect
import io
import os
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tokenize import TokenError
from typing import Any, TypeVar

import gin

from backbones.registry import backbones, suggest
from locore.datasets import benchmarks
from locore.descriptors.extractor import Extractor
from locore.descriptors.files import Files
from locore.pipeline.build import count_parameters, weights_fingerprint
from locore.pipeline.embedding import Embedding
from locore.pipeline.extraction import Extraction
from locore.pipeline.pretraining import Pretraining
from locore.pipeline.settings import HELD_OUT, Data, Experiment, Model, Outputs, Reranking
from locore.reranking.reranker import rerankers
from locore.training.embedder import Finetuning
from locore.training.lists import Sampling
from locore.training.loop import Training
from locore.utils.renamed import RENAMED, rename_settings

PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "gin")  # in a wheel; in a checkout
CONFIGS = [folder for folder in PLACES if folder.is_dir()]
T = TypeVar("T")
_announced: set[str] = set()  # old names that were reported already


def _bind(build: Callable[..., T], name: str | None = None, parts: Sequence[str] = ()) -> Callable[..., T]:
    """Make a class or function configurable by gin, except its parts; the plain one stays as it is."""
    return gin.external_configurable(build, name=name, module="locore", denylist=list(parts) or None)


def _settings_builder(name: str, kind: str) -> Callable[[], dict[str, Any]]:
    """Return a gin function named as a registered builder: `mamba.depth = 6` sets one of its settings."""

    def build(**settings):
        return dict(settings)

    return gin.external_configurable(build, name=name, module=kind.replace("-", ""))


SETTINGS = {
    name: _settings_builder(name, registry.kind)
    for registry in (backbones, rerankers, benchmarks)
    for name in registry.available()
}


def settings_of(name: str) -> dict[str, Any]:
    """Return what gin binds for a registered builder; nothing for an unknown name, which the library reports."""
    return SETTINGS[name]() if name in SETTINGS else {}


def _data(benchmark: str = "glyphs", asked: str = "all", validation: str = HELD_OUT) -> Data:
    return Data(benchmark, settings_of(benchmark), asked, validation)


data = _bind(_data, "Data")
extractor, sampling, training, finetuning = _bind(Extractor), _bind(Sampling), _bind(Training), _bind(Finetuning)
model, reranking, outputs, files = _bind(Model), _bind(Reranking), _bind(Outputs), _bind(Files)
_experiment = _bind(
    Experiment,
    parts=("model", "reranking", "outputs", "data", "extractor", "sampling", "training", "settings"),
)
_embedding = _bind(Embedding, parts=("data", "extractor", "finetuning", "training"))
_extraction = _bind(Extraction, parts=("data", "extractor"))
_pretraining = _bind(Pretraining, parts=("model", "settings"))
OF_ONE_COMMAND = ["Experiment", "Model", "Reranking", "Outputs", "Files", "Embedding", "Extraction", "Pretraining"]
KNOWN = ["Data", "Extractor", "Training", "Sampling", "Finetuning", *OF_ONE_COMMAND, *SETTINGS]


def experiment() -> Experiment:
    """Build an experiment from what gin binds."""
    own, how = model(), reranking()
    used = dict.fromkeys([own.name, *(name for name, _ in how.first_stages)])
    return _experiment(
        model=own,
        reranking=how,
        outputs=outputs(),
        data=data(),
        extractor=extractor(),
        sampling=sampling(),
        training=training(),
        settings={name: settings_of(name) for name in used},
    )


def embedding() -> Embedding:
    """Build a training of global descriptors from what gin binds."""
    return _embedding(data=data(), extractor=extractor(), finetuning=finetuning(), training=training())


def extraction() -> Extraction:
    """Build an extraction from what gin binds."""
    return _extraction(data=data(), extractor=extractor())


def pretraining() -> Pretraining:
    """Build a pretraining from what gin binds."""
    own = model()
    made = _pretraining(model=own, settings=settings_of(own.name))
    made.count_parameters()  # report now what cannot be built
    return made


def read_experiment(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Experiment, str]:
    """Read an experiment.

    Args:
        gin_files: later ones win.
        overrides: `Class.option = value` lines, which win over the files.
        seed: of the run.

    Returns:
        The experiment, and its configuration, which tells one run from another.

    Raises:
        ValueError: a file, a name or a value is wrong, or the re-ranker cannot be built.
    """

    def make() -> Experiment:
        made = experiment()
        count_parameters(made)  # report now what cannot be built
        return made

    made, config = read(make, gin_files, overrides, seed)
    return made, config + weights_fingerprint(made)


def read_extraction(gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[Extraction, str]:
    """Read an extraction; arguments, result and errors as `read_experiment`."""
    made, config = read(extraction, gin_files, overrides, seed)
    return made, f"{config}# extractor {made.extractor.fingerprint}\n"


def read(make: Callable[[], T], gin_files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[T, str]:
    """Build what `make` builds under these gin files; other arguments, result and errors as `read_experiment`."""
    _set_up()
    gin.clear_config()
    for file in gin_files:
        _parse(gin.parse_config_file, _path(file), file, print_includes_and_imports=False, skip_unknown=OF_ONE_COMMAND)
    for line in overrides:
        _parse(gin.parse_config, _renamed(line), line, skip_unknown=OF_ONE_COMMAND)
    try:
        made = make()
    except (TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
        # A setting of the wrong type or sign fails wherever it is first used: in torch, in timm or in our code.
        raise ValueError(f"This configuration cannot be built: {error}.") from error
    return made, f"# seed {seed}\n{gin.operative_config_str()}"


def same_run(config: str, older: str) -> bool:
    """Return whether an older configuration is this one, settings that are newer being at their defaults."""
    now, then = settings_lines(config), settings_lines(rename_settings(older)[0])
    return then <= now and all(_is_default(line) for line in now - then)


def settings_lines(config: str) -> set[str]:
    """Return the statements of a configuration, each on one line, and its comments without gin's headings."""
    text = re.sub(r"\\\n\s*", "", config)
    return {line for line in text.splitlines() if line and not line.startswith(("# Parameters", "# ==", "# None"))}


def identifying_lines(config: str) -> list[str]:
    """Return the lines that tell a run from others: statements that differ from their defaults, and comments."""
    return sorted(line for line in settings_lines(rename_settings(config)[0]) if not _is_default(line))


def _is_default(line: str) -> bool:
    """Return whether a line sets what would be so without it."""
    found = re.fullmatch(r"(\w+)\.(\w+) = (.*)", line)
    if not found:
        return False
    known = _defaults(found[1])
    return found[2] in known and known[found[2]] == found[3]


@cache
def _defaults(name: str) -> dict[str, str]:
    """Return the default values of a configurable, as gin writes them."""
    build = gin.get_configurable(name)
    known = inspect.signature(build.__init__ if inspect.isclass(build) else build).parameters
    return {parameter: repr(each.default) for parameter, each in known.items() if parameter != "self"}


@cache
def _set_up() -> None:
    """Let gin find its files in this package, and read old names."""
    # gin also looks for an included file in Python packages, and fails at any folder called `data` that it is run in.
    gin.config._FILE_READERS[:] = [(lambda path: io.StringIO(_renamed(Path(path).read_text())), os.path.isfile)]
    for folder in CONFIGS:
        gin.add_config_file_search_path(str(folder))


def _renamed(text: str) -> str:
    """Give settings their names of today, and say once which old ones were read."""
    text, old = rename_settings(text)
    for name in (name for name in old if name not in _announced):
        _announced.add(name)
        print(f"note: {name} is called {RENAMED[name]} now; the old name is still read.", file=sys.stderr)
    return text


def _parse(parser: Callable, text: str, source: str, **options) -> None:
    """Let gin read a file or a line; an error names that file or line, and the nearest known name."""
    try:
        parser(text, **options)
    except (ValueError, TypeError, SyntaxError, TokenError, OSError, RuntimeError) as error:
        unknown = re.search(r"No configurable matching ['\"](\w+)", str(error))
        if unknown:
            raise ValueError(f"In '{source}' nothing is called '{unknown[1]}'{suggest(unknown[1], KNOWN)}") from error
        setting = re.search(r"Configurable '(?:\w+\.)*(\w+)' doesn't have a parameter named '(\w+)'", str(error))
        if setting:
            hint = suggest(setting[2], _defaults(setting[1]))
            raise ValueError(f"In '{source}' {setting[1]} has no setting '{setting[2]}'{hint}") from error
        if "malformed node" in str(error):
            raise ValueError(f"In '{source}' a value cannot be read; write text in quotes: 'photos'.") from error
        part = re.search(r"denylisted kwarg '(\w+)'", str(error))
        if part:
            raise ValueError(
                f"In '{source}': {part[1]} is made from its own settings; write {part[1].capitalize()}.… = … instead."
            ) from error
        raise ValueError(f"In '{source}': {error.args[0] if isinstance(error, TokenError) else error}") from error


def _path(file: str) -> str:
    """Find a gin file by its path, or among those that come with the package."""
    inside = re.sub(r"^(\./)?gin/", "", file)
    for path in (Path(file), *(folder / inside for folder in CONFIGS)):
        if path.is_file():
            return str(path)
    known = sorted(str(p.relative_to(folder)) for folder in CONFIGS for p in folder.rglob("*.gin"))
    raise ValueError(f"No gin file '{file}'{suggest(inside, known)}")
