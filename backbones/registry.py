"""Things by name. Adding an encoder is one file:

    @register("mine", mini={"width": 192}, base={"width": 768})
    class Mine(SequenceEncoder): ...

A file in `backbones/` is found by itself. Another package adds its own through the entry-point group
`locore.backbones` (name = "module"): the module is imported and its `@register` does the rest.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from importlib.metadata import entry_points
from typing import Any, NamedTuple

from backbones.settings import check

DEFAULT_SIZE = "mini"


class Entry(NamedTuple):
    build: Callable[..., Any]
    sizes: dict[str, dict[str, Any]]


class Registry:
    """Builders by name, found in the modules of a package and behind an entry-point group.

    Args:
        kind: what is registered, for messages. package: whose modules register. group: the entry-point group.
    """

    def __init__(self, kind: str, package: str, group: str):
        self.kind, self.package, self.group = kind, package, group
        self._entries: dict[str, Entry] = {}
        self._discovered = False

    def register(self, name: str, **sizes: dict[str, Any]):
        """Class decorator: make it known as `name`, with named sizes as keyword = settings.

        Raises:
            ValueError: another class has the name already.
        """

        def decorate(build):
            known = self._entries.get(name)
            if known and _origin(known.build) != _origin(build):
                raise ValueError(
                    f"The {self.kind} '{name}' is registered twice: {_origin(known.build)} and {_origin(build)}."
                )
            self._entries[name] = Entry(build, sizes or {DEFAULT_SIZE: {}})
            return build

        return decorate

    def create(self, name: str, size: str = DEFAULT_SIZE, **settings):
        """Build `name` in a named size; `settings` override the size's.

        Raises:
            ValueError: unknown name, size or setting; the message names the nearest known ones.
        """
        self.check(name, size, **settings)
        entry = self.entry(name)
        return entry.build(**{**entry.sizes[size], **settings})

    def check(self, name: str, size: str = DEFAULT_SIZE, **settings) -> None:
        """Raise what `create` would raise of these arguments, without building."""
        entry = self.entry(name)
        if size not in entry.sizes:
            raise ValueError(f"The {self.kind} '{name}' has no size '{size}'{suggest(size, entry.sizes)}")
        known = inspect.signature(entry.build).parameters
        given = {**entry.sizes[size], **settings}
        for setting in given:
            if setting not in known:
                raise ValueError(f"The {self.kind} '{name}' has no setting '{setting}'{suggest(setting, known)}")
        check(name, given, entry.build)
        for setting, parameter in known.items():
            if parameter.default is parameter.empty and setting not in given:
                raise ValueError(f"The {self.kind} '{name}' needs a setting '{setting}'; give {name}.{setting} = …")

    def available(self, pattern: str = "*") -> list[str]:
        """Registered names that match a wildcard pattern, sorted."""
        self._discover()
        return sorted(name for name in self._entries if fnmatch(name, pattern))

    def sizes(self, name: str) -> list[str]:
        """The named sizes of an entry."""
        return list(self.entry(name).sizes)

    def entry(self, name: str) -> Entry:
        """The builder behind a name and its sizes."""
        self._discover()
        if name not in self._entries:
            raise ValueError(f"Unknown {self.kind} '{name}'{suggest(name, sorted(self._entries))}")
        return self._entries[name]

    def _discover(self) -> None:
        if self._discovered:
            return
        self._discovered = True
        for module in pkgutil.iter_modules(importlib.import_module(self.package).__path__, f"{self.package}."):
            importlib.import_module(module.name)
        for point in entry_points(group=self.group):
            point.load()


def suggest(name: str, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest known one, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean '{near[0]}'?" if near else ".") + f" Known: {', '.join(known)}."


def _origin(build) -> str:
    return f"{build.__module__}.{build.__qualname__}"


backbones = Registry("backbone", "backbones", "locore.backbones")
register, create, available, sizes = backbones.register, backbones.create, backbones.available, backbones.sizes
