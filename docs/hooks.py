"""Pages of the documentation that are made from the repository: results, commands and settings, and their pictures."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))


def on_files(files: Files, config) -> Files:
    """Add results/, the map of gin/ and the help of every command."""
    for path in sorted((ROOT / "results").rglob("*")):
        if path.suffix in (".md", ".png", ".csv"):
            files.append(_copied(config, path, path.relative_to(ROOT).as_posix()))
    files.append(File.generated(config, "commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page, config, files) -> str:
    """Point links that leave docs/ to the pages that they have here."""
    if page.file.src_uri.startswith("results/"):
        return re.sub(r"\]\((?:\.\./)+docs/", "](" + "../" * page.file.src_uri.count("/"), markdown)
    return markdown


def _copied(config, path: Path, uri: str) -> File:
    if path.suffix == ".md":
        return File.generated(config, uri, content=path.read_text())
    return File.generated(config, uri, abs_src_path=str(path))


def _commands() -> str:
    from experiments.__main__ import commands, help_text

    os.environ["COLUMNS"] = "110"
    text = [
        "# Commands",
        "",
        "`python -m experiments`, or `locore`, lists them. Each is a module, and a file of `experiments/`.",
        "",
    ]
    for name, line in commands().items():
        text += [f"## {name}", "", f"{line}.", "", "```text", help_text(name).rstrip(), "```", ""]
    return "\n".join(text)
