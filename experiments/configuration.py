"""gin for the library: its classes are bound from here, so that they know nothing of gin."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from tokenize import TokenError
from typing import TypeVar

import gin

import backbones
from backbones.registry import backbones as registry
from backbones.registry import suggest
from locore.datasets import benchmarks
from locore.descriptors import Extractor
from locore.descriptors.finetune import Finetuning
from locore.reranking.reranker import rerankers
from locore.training import Training
from locore.training_lists import Sampling

PLACES = (Path(__file__).parent / "configs", Path(__file__).parents[1] / "gin")  # in a wheel; in a checkout
CONFIGS = [folder for folder in PLACES if folder.is_dir()]


def configurable(registry_, name: str):
    """A registered builder as a gin function of the same name: `mamba.depth = 6` sets one of its settings."""

    def build(**settings):
        return dict(settings)

    return gin.external_configurable(build, name=name, module=registry_.kind.replace("-", ""))


SETTINGS = {
    **{name: configurable(registry, name) for name in backbones.available()},
    **{name: configurable(rerankers, name) for name in rerankers.available()},
    **{name: configurable(benchmarks, name) for name in benchmarks.available()},
}
COMMANDS = ["Experiment", "Embedding", "Extraction", "Files"]  # of a gin file a command skips what is another's
# gin also looks for an included file in Python packages, and stumbles over any folder called `data` that it is run in.
gin.config._FILE_READERS[:] = [(open, os.path.isfile)]
for _folder in CONFIGS:
    gin.add_config_file_search_path(str(_folder))
T = TypeVar("T")
extractor = gin.external_configurable(Extractor, module="locore")
training = gin.external_configurable(Training, module="locore")
sampling = gin.external_configurable(Sampling, module="locore")
finetuning = gin.external_configurable(Finetuning, module="locore")


def parse(files: Sequence[str], overrides: Sequence[str]) -> None:
    """Read gin files, later ones winning, then `Class.option = value` lines.

    Raises:
        ValueError: a file is missing, or a line is bad or names what does not exist.
    """
    gin.clear_config()
    for file in files:
        _read(gin.parse_config_file, _found(file), file, print_includes_and_imports=False, skip_unknown=COMMANDS)
    for line in overrides:
        _read(gin.parse_config, line, line, skip_unknown=COMMANDS)


def built(make: Callable[[], T], files: Sequence[str], overrides: Sequence[str], seed: int) -> tuple[T, str]:
    """What `make` makes under these gin files, and its operative configuration, which tells one run from another.

    Raises:
        ValueError: a file, a name or a value is wrong.
    """
    parse(files, overrides)
    try:
        made = make()
    except (TypeError, RuntimeError, ArithmeticError, LookupError, AttributeError, AssertionError) as error:
        # A setting of the wrong type or sign fails wherever it is first used, in torch, timm or our own code.
        raise ValueError(f"This configuration cannot be built: {error}.") from error
    return made, f"# seed {seed}\n{gin.operative_config_str()}"


def same_run(config: str, older: str) -> bool:
    """Whether an older configuration is this one, what can be set only since then being as it is by default."""
    now, then = (
        {line for line in _lines(text) if not line.startswith(("# Parameters", "# ==", "# None"))}
        for text in (config, older)
    )
    return then <= now and all(_by_default(line) for line in now - then)


def _lines(config: str) -> list[str]:
    """Its statements, each on one line, and its comments."""
    return [line for line in re.sub(r"\\\n\s*", "", config).splitlines() if line]


def _by_default(line: str) -> bool:
    """Whether a line sets what would be so without it."""
    found = re.fullmatch(r"(\w+)\.(\w+) = (.*)", line)
    if not found:
        return False
    build = gin.get_configurable(found[1])
    known = inspect.signature(build.__init__ if inspect.isclass(build) else build).parameters
    return found[2] in known and repr(known[found[2]].default) == found[3]


def _read(parser: Callable, text: str, said: str, **options) -> None:
    """Let gin read a file or a line; what it says of a mistake names that file or line, and the nearest known name."""
    try:
        parser(text, **options)
    except (ValueError, TypeError, SyntaxError, TokenError, OSError, RuntimeError) as error:
        unknown = re.search(r"No configurable matching ['\"](\w+)", str(error))
        if unknown:
            known = ["Data", "Extractor", "Training", "Sampling", "Finetuning", *COMMANDS, *SETTINGS]
            raise ValueError(f"In '{said}' nothing is called '{unknown[1]}'{suggest(unknown[1], known)}") from error
        raise ValueError(f"In '{said}': {error.args[0] if isinstance(error, TokenError) else error}") from error


def _found(file: str) -> str:
    """A gin file by its path, or among those that come with the package."""
    inside = re.sub(r"^(\./)?gin/", "", file)
    for path in (Path(file), *(folder / inside for folder in CONFIGS)):
        if path.is_file():
            return str(path)
    known = sorted(str(p.relative_to(folder)) for folder in CONFIGS for p in folder.rglob("*.gin"))
    raise ValueError(f"No gin file '{file}'{suggest(inside, known)}")
