"""The import law: packages stand on floors and import only floors below; no module imports in a circle."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "dynamo"
FLOORS = [
    {"common", "kernels"},
    {"model", "cooccurrence"},
    {"data", "sampling"},
    {"decoding", "trace", "loading"},
    {"training", "charts", "evaluation", "hub"},
    {"spaces", "pipelines", "reproduction"},
    {"ui", "commands"},
]
# The page's own floors: the server's parts know no tab, Explore and Models use what Compare has, and the
# modules on top put the tabs together.
UI_FLOORS = [
    {"server", "theme"},
    {"components"},
    {"compare"},
    {"explore"},
    {"models"},
    {"api"},
    {"layout"},
]
HOMES = {
    "gradio": {"ui"},
    "plotly": {"charts"},
    "accelerate": {"common", "training", "loading", "evaluation"},
    "datasets": {"data"},
    "bitsandbytes": {"loading"},
    "numba": {"kernels"},
}


def module_name(path: Path) -> str:
    """`sampling.joint` for dynamo/sampling/joint.py; a package's own name for its __init__."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imported(path: Path) -> Iterator[str]:
    """Full names of what a file imports; `from x import y` as x.y."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(name: str) -> set[str]:
    """The modules of this package that a module imports."""
    found = set()
    for full in imported(MODULES[name]):
        if full.split(".")[0] == "dynamo":
            inner = full.removeprefix("dynamo").lstrip(".")
            found.add(inner if inner in MODULES else inner.rpartition(".")[0])
    return found - {name}


def floor_of(part: str, floors: list[set[str]]) -> int:
    return next(level for level, parts in enumerate(floors) if part in parts)


def test_every_package_has_its_floor():
    packages = {name.split(".")[0] for name in MODULES} - {"", "__main__"}
    assert packages == set().union(*FLOORS)
    assert {path.stem for path in PACKAGE.glob("*.py")} == {"__init__", "__main__"}


def test_the_readmes_map_has_every_package_on_its_floor():
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| `(\w+)/` \|", readme, flags=re.M)
    assert rows == sorted(rows, key=lambda row: row[0])
    assert {(int(floor), name) for floor, name in rows} == {
        (level, name) for level, names in enumerate(FLOORS, start=1) for name in names
    }


def test_a_module_imports_only_its_package_and_floors_below():
    wrong = []
    for name in set(MODULES) - {"", "__main__"}:
        package, *inside = name.split(".")
        for other in own_imports(name):
            there, *inside_there = other.split(".")
            below = True
            if there != package:
                below = bool(there) and floor_of(there, FLOORS) < floor_of(package, FLOORS)
            elif package == "ui" and inside and inside_there and inside[0] != inside_there[0]:
                below = floor_of(inside_there[0], UI_FLOORS) < floor_of(inside[0], UI_FLOORS)
            if not below:
                wrong.append(f"{name} imports {other}")
    assert wrong == []


def test_no_module_imports_in_a_circle():
    """Also not inside functions."""
    try:
        TopologicalSorter({name: own_imports(name) for name in MODULES}).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_heavy_libraries_stay_in_their_packages():
    wrong = []
    for name, path in MODULES.items():
        for full in imported(path):
            library = full.split(".")[0]
            if library in HOMES and name.split(".")[0] not in HOMES[library]:
                wrong.append(f"{name} imports {library}")
    assert wrong == []


def test_a_function_is_at_most_60_lines():
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = ((name, node) for name, path in MODULES.items() for node in ast.walk(tree_of(path)))
    lengths = {
        f"{name}.{node.name}": node.end_lineno - node.lineno + 1
        for name, node in nodes
        if isinstance(node, functions)
    }
    assert {name: length for name, length in lengths.items() if length > 60} == {}


def test_importing_the_package_touches_no_network_and_no_page():
    """In a new interpreter that may not connect to anything; loops are compiled when one is asked for."""
    code = (
        "import socket, sys\n"
        "def refuse(*_): raise AssertionError('network')\n"
        "socket.socket.connect = refuse; socket.getaddrinfo = refuse\n"
        "import dynamo\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=PACKAGE.parent, timeout=240)
    assert done.returncode == 0, done.stderr
    imported = set(done.stdout.split())
    assert "dynamo.kernels" in imported
    assert not {"gradio", "plotly", "bitsandbytes", "datasets", "numba"} & imported
