"""Builders by name. Adding an encoder is one file:

    @register("mine", mini={"width": 192}, base={"width": 768})
    class Mine(SequenceEncoder): ...

A file in `backbones/`, or in a folder of it, is found by itself. Another package adds its own through the entry-point
group `locore.backbones` (name = "module"): the module is imported, and its `@register` does the rest.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
import threading
from collections.abc import Callable, Iterable
from fnmatch import fnmatch
from importlib.metadata import entry_points
from typing import Any, Generic, NamedTuple, TypeVar

from backbones.encoder import SequenceEncoder
from backbones.settings import check

DEFAULT_SIZE = "mini"
T = TypeVar("T")
B = TypeVar("B", bound=Callable[..., Any])


class Entry(NamedTuple):
    """A registered builder and its named sizes, each a dictionary of settings."""

    build: Callable[..., Any]
    sizes: dict[str, dict[str, Any]]


class Registry(Generic[T]):
    """Builders of one kind of thing, found in the modules of a package and through an entry-point group.

    Args:
        kind: what is registered, for messages.
        package: the package whose modules register.
        group: the entry-point group.
    """

    def __init__(self, kind: str, package: str, group: str):
        self.kind, self.package, self.group = kind, package, group
        self._entries: dict[str, Entry] = {}
        self._complete = False
        self._lock = threading.RLock()

    def register(self, name: str, **sizes: dict[str, Any]) -> Callable[[B], B]:
        """Register the decorated class or function.

        Args:
            name: the name that it gets.
            sizes: named sizes, each a dictionary of settings.

        Raises:
            ValueError: another class has the name already.
        """

        def decorate(build: B) -> B:
            known = self._entries.get(name)
            if known and _origin(known.build) != _origin(build):
                raise ValueError(
                    f"The {self.kind} '{name}' is registered twice: {_origin(known.build)} and {_origin(build)}."
                )
            self._entries[name] = Entry(build, sizes or {DEFAULT_SIZE: {}})
            return build

        return decorate

    def create(self, name: str, size: str = DEFAULT_SIZE, **settings: Any) -> T:
        """Build `name` in a named size; `settings` override those of the size.

        Raises:
            ValueError: unknown name, size or setting; the message has the nearest known one.
        """
        self.check(name, size, **settings)
        entry = self.entry(name)
        return entry.build(**{**entry.sizes[size], **settings})

    def check(self, name: str, size: str = DEFAULT_SIZE, **settings: Any) -> None:
        """Raise what `create` would raise for these arguments, without building."""
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
        """List the registered names that match a wildcard pattern, sorted."""
        self._discover()
        return sorted(name for name in self._entries if fnmatch(name, pattern))

    def sizes(self, name: str) -> list[str]:
        """List the named sizes of an entry."""
        return list(self.entry(name).sizes)

    def entry(self, name: str) -> Entry:
        """Return the builder of a name and its sizes.

        Raises:
            ValueError: unknown name; the message has the nearest known one.
        """
        self._discover()
        if name not in self._entries:
            raise ValueError(f"Unknown {self.kind} '{name}'{suggest(name, sorted(self._entries))}")
        return self._entries[name]

    def _discover(self) -> None:
        """Import every module that may register; other threads wait until all are imported."""
        if self._complete:
            return
        with self._lock:
            if self._complete:
                return
            package = importlib.import_module(self.package)
            for module in pkgutil.walk_packages(package.__path__, f"{self.package}."):
                if not module.name.rpartition(".")[2].startswith("_"):
                    importlib.import_module(module.name)
            for point in entry_points(group=self.group):
                point.load()
            self._complete = True


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error about an unknown name: the nearest known one, and all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=1)
    return (f"; did you mean '{near[0]}'?" if near else ".") + f" Known: {', '.join(known)}."


def _origin(build: Any) -> str:
    return f"{build.__module__}.{build.__qualname__}"


backbones: Registry[SequenceEncoder] = Registry("backbone", "backbones", "locore.backbones")
register, create, available, sizes = backbones.register, backbones.create, backbones.available, backbones.sizes
