"""Command lines in prose and in the headers of gin files, checked without running them."""

import inspect
import re
import shlex
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path

import experiments._config as config
from experiments.__main__ import commands, help_text

ROOT = Path(__file__).parents[2]


def command_lines(text: str) -> list[str]:
    """The commands of ours in a text: indented, in a code span, or after `# Command:`."""
    lines = [line.strip().lstrip("# ").removeprefix("Command:").strip() for line in text.splitlines()]
    spans = re.findall(r"`(python -m experiments\.[^`]+)`", text)
    return [line for line in [*lines, *spans] if line.startswith("python -m experiments.")]


def problems(line: str, registered: Sequence[str] = ()) -> list[str]:
    """What is wrong with a command line: an unknown command, gin file or setting; `registered` are known as well."""
    words = shlex.split(re.sub(r"\s+\(.*\)$|\s+#.*$", "", line.replace("…", "")), posix=True)
    name = words[2].removeprefix("experiments.")
    if name.startswith("_"):
        return [] if (ROOT / Path(*words[2].split("."))).with_suffix(".py").exists() else [f"no module {words[2]}"]
    if name not in commands():
        return [f"no command {name}"]
    options = {word for word in words[3:] if word.startswith("--")}
    found = [f"no option {option}" for option in sorted(options - known_options(name))]
    for word in words[3:]:
        files = re.findall(r"gin/[\w./*-]+\.(?:gin|csv)", word)
        found += [f"no file {file}" for file in files if not list(ROOT.glob(file))]
    for option, value in pairwise(words):
        if option == "--set":
            found += _unknown_setting(value, registered)
    return found


@cache
def known_options(command: str) -> set[str]:
    """The options of a command, as its help shows them."""
    return set(re.findall(r"--[a-z][a-z-]*", help_text(command)))


def _unknown_setting(text: str, registered: Sequence[str]) -> list[str]:
    given = re.fullmatch(r"(\w+)\.(\w+) = .+", text, re.DOTALL)
    if not given:
        return [f"not a setting: {text}"]
    if given[1] in registered:
        return []
    if given[1] not in config.KNOWN:
        return [f"nothing is called {given[1]}"]
    known = config._defaults(given[1])
    if given[1] in config.SETTINGS:
        registries = (config.backbones, config.rerankers, config.benchmarks)
        build = next(registry.entry(given[1]).build for registry in registries if given[1] in registry.available())
        known = inspect.signature(build).parameters
    return [] if given[2] in known else [f"{given[1]} has no setting {given[2]}"]
