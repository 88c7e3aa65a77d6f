"""Imports run one way, none is hidden, and the library is quick to import."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ORDER = [  # inside locore: a part imports what stands before it
    "utils", "metrics", "datasets", "retrieval", "descriptors", "reranking", "evaluation", "training", "checkpoints",
    "probes", "report", "pipeline", "search",
]  # fmt: skip
FILES = sorted(path for package in ("backbones", "locore", "experiments") for path in (ROOT / package).rglob("*.py"))
OURS = ("backbones", "locore", "experiments")


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path) for path in FILES}


def imports(path: Path, nodes=None):
    """The modules of ours that a file imports, each with its line."""
    for node in nodes or ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            named = [full if (full := f"{node.module}.{a.name}") in MODULES else node.module for a in node.names]
        else:
            continue
        yield from ((name, node.lineno) for name in named if name.split(".")[0] in OURS)


def rank(name: str) -> tuple[int, int]:
    """Place in the order of imports: packages first, then the parts of locore."""
    package, *rest = name.split(".")
    return OURS.index(package), ORDER.index(rest[0]) if package == "locore" and rest else 0


FACADE = ROOT / "locore" / "__init__.py"  # offers names of all parts, imported when they are used


def test_imports_run_one_way():
    for path in FILES:
        wrong = [f"line {line}: {name}" for name, line in imports(path) if rank(name) > rank(module(path))]
        assert path == FACADE or not wrong, f"{module(path)} imports {wrong}"


def test_every_part_of_the_library_has_its_place_in_the_order():
    parts = {path.stem for path in (ROOT / "locore").iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert parts | {"retrieval"} == set(ORDER)


def test_the_library_has_no_loose_files():
    loose = {path.name for path in (ROOT / "locore").iterdir() if path.is_file()}
    assert loose == {"__init__.py", "py.typed", "retrieval.py"}


def test_modules_import_each_other_in_no_circle():
    edges = {module(path): {name for name, _ in imports(path)} for path in FILES if path.name != "__init__.py"}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]):
        assert name not in trail, f"a circle: {' -> '.join([*trail[trail.index(name) :], name])}"
        if name not in done and name in edges:
            for other in edges[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


def test_no_import_is_hidden():
    for path in FILES:
        tree = ast.parse(path.read_text())
        functions = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        inner = [node for function in functions for node in ast.walk(function)]
        hidden = [name for name, _ in imports(path, inner or [tree]) if not name.endswith("._triton")]
        assert not hidden, f"{module(path)}: only Triton kernels, which a CPU has not, are imported inside a function"
        assert path == FACADE or "TYPE_CHECKING" not in path.read_text(), module(path)


def test_gin_is_known_to_one_file():
    def reads_gin(path):
        nodes = ast.walk(ast.parse(path.read_text()))
        names = [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
        names += [a.name for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Import) for a in n.names]
        return any(name.split(".")[0] == "gin" for name in names)

    assert [module(path) for path in FILES if reads_gin(path)] == ["experiments._config"]


def test_importing_the_library_imports_nothing_heavy():
    code = "import sys, locore; print(sorted({'torch', 'timm', 'numpy', 'PIL'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"


def test_every_name_of_the_library_is_there():
    import locore

    assert set(dir(locore)) >= set(locore.__all__)
    for name in locore.__all__:
        assert getattr(locore, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'rerannk'; did you mean 'rerank'"):
        _ = locore.rerannk
