"""List the commands, or run one:  python -m experiments run --gin gin/mamba.gin   (or: locore run …)"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import sys
from pathlib import Path

from locore.utils.nearest import did_you_mean


def commands() -> dict[str, str]:
    """Return the commands by name, each with the first sentence of its module's docstring."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[path.stem] = text.split(":  ")[0]
    return found


def help_text(name: str) -> str:
    """Return the help of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as found, contextlib.suppress(SystemExit):
        importlib.import_module(f"experiments.{name}").main(["--help"])
    return found.getvalue()


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = commands()
    if not arguments or arguments[0] in ("-h", "--help"):
        print("usage: python -m experiments COMMAND …   (or: locore COMMAND …)\n")
        for name, line in known.items():
            print(f"  {name:<10}{line}")
        print("\nCOMMAND --help explains a command and ends with two examples.")
        return 0
    if arguments[0] not in known:
        hint = did_you_mean(arguments[0], known) or "."
        print(f"error: Unknown command '{arguments[0]}'{hint} Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    return importlib.import_module(f"experiments.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
