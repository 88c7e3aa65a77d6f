"""List the commands, or run one:  python -m experiments run --gin gin/mamba.gin   (or: locore run …)"""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from pathlib import Path


def commands() -> dict[str, str]:
    """Return the commands by name, each with the first sentence of its module's docstring."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text())) or ""
        found[path.stem] = text.split(":  ")[0]
    return found


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
        near = difflib.get_close_matches(arguments[0], known, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        print(f"error: Unknown command '{arguments[0]}'{hint} Known: {', '.join(known)}.", file=sys.stderr)
        return 2
    return importlib.import_module(f"experiments.{arguments[0]}").main(arguments[1:])


if __name__ == "__main__":
    sys.exit(main())
