"""The lines that keep the tree small: its sizes, its rooms and who imports whom."""

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = (  # A room imports those of earlier lines only, and itself.
    ("errors", "files", "host_memory", "describe", "hosts", "devices", "dropout", "scaling"),
    ("launcher", "data", "runs"),
    ("items",),
    ("model",),
    ("losses",),
    ("inference",),
    ("evaluation",),
    ("training",),
    ("finetuning",),
    ("studies",),
    ("tasks", "fsck"),
    ("main",),
    ("child",),
)
BESIDE = {("runs", "data"), ("runs", "model"), ("data", "errors")}
MOST_LINES = {"package": 13_800, "file": 400, "function": 60, "parameters": 10}


@functools.cache
def files() -> dict[str, ast.Module]:
    """Syntax trees of the package's modules by their dotted names."""
    found = {}
    for path in sorted((ROOT / "seqrec_jax").rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        found[name] = ast.parse(path.read_text())
    return found


def path_of(name: str) -> Path:
    path = ROOT / Path(*name.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def lines_of(name: str) -> int:
    return len(path_of(name).read_text().splitlines())


def imports(name: str) -> Iterator[str]:
    """Modules of the package that one imports, within functions and for types, too."""
    for node in ast.walk(files()[name]):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("seqrec_jax"):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in files() else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("seqrec_jax."))


def room(name: str) -> str:
    return name.split(".")[1] if "." in name else "seqrec_jax"


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for name, tree in files().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{name}.{node.name}", node


def test_the_package_and_its_parts_stay_small():
    sizes = {name: lines_of(name) for name in files()}
    assert sum(sizes.values()) <= MOST_LINES["package"]
    assert {name: n for name, n in sizes.items() if n > MOST_LINES["file"]} == {}
    long = {name: node.end_lineno - node.lineno + 1 for name, node in functions()}
    assert {name: n for name, n in long.items() if n > MOST_LINES["function"]} == {}
    wide = {name: len(n.args.args + n.args.kwonlyargs + n.args.posonlyargs) for name, n in functions()}
    assert {name: n for name, n in wide.items() if n > MOST_LINES["parameters"] + 1} == {}  # and self
    assert {name for name, n in wide.items() if n == MOST_LINES["parameters"] + 1} <= {
        name for name, node in functions() if node.args.args and node.args.args[0].arg in ("self", "cls")
    }


@pytest.mark.parametrize(
    ("statement", "most"),
    [
        ("from seqrec_jax import Index, load; import seqrec_jax.tasks.recommend", 3_800),
        ("from seqrec_jax import Corpus, Recommender, TrainConfig, fit", 7_600),
    ],
)
def test_what_recommending_and_training_import_is_little(statement, most):
    code = f"import sys; {statement}; print(*(m for m in sys.modules if m.split('.')[0] == 'seqrec_jax'))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert sum(lines_of(name) for name in printed.split()) <= most


def test_arrows_go_down_and_never_round():
    floor = {name: level for level, names in enumerate(FLOORS) for name in names}
    assert {room(name) for name in files()} - {"seqrec_jax"} == set(floor)
    upwards = {
        (name, imported)
        for name in files()
        if name != "seqrec_jax"
        for imported in imports(name)
        if room(name) != room(imported) and floor[room(name)] <= floor[room(imported)]
        and (room(name), room(imported)) not in BESIDE and floor[room(imported)] > 0
    }  # fmt: skip
    assert upwards == set()


def test_no_module_imports_itself_by_a_detour():
    state: dict[str, int] = {}

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert state.get(name) != 1, " > ".join((*trail, name))
        if name not in state:
            state[name] = 1
            for imported in sorted(set(imports(name)) - {name}):
                visit(imported, (*trail, name))
            state[name] = 2

    for name in files():
        visit(name, ())


def test_gin_is_the_launchers_language_alone():
    using = {
        name
        for name, tree in files().items()
        for node in ast.walk(tree)
        if (isinstance(node, ast.Import) and any(alias.name == "gin" for alias in node.names))
        or (isinstance(node, ast.ImportFrom) and node.module == "gin")
    }
    assert using <= {"seqrec_jax.launcher", "seqrec_jax.main", "seqrec_jax.tasks.registry"}


def test_no_room_is_without_a_name():
    names = {path.stem for folder in ("seqrec_jax", "etl") for path in (ROOT / folder).rglob("*.py")}
    assert not names & {"util", "utils", "common", "helper", "helpers", "misc"}


def test_scaling_and_etl_import_no_jax():
    for name, tree in files().items():
        if room(name) in ("scaling", "data") or name == "seqrec_jax.items.tokenizer":
            for node in ast.walk(tree):
                heads = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                heads += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                assert not any(head.split(".")[0] in ("jax", "flax", "optax", "orbax") for head in heads), name
