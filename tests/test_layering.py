"""The import law: a module imports only lower layers or siblings named here; heavy libraries have a home."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "dynamo"

LAYERS = [
    {"model", "tuples", "counting", "cooccurrence", "joint", "options", "text"}
    | {"trace", "jointline", "ndjson", "losses", "recipes", "folders", "hub", "stages", "estimates"}
    | {"workers", "processes", "intervals", "zerogpu", "foreign", "memory", "placement", "threads", "kernels"}
    | {"candidates", "direction", "sortedruns", "sampling_options", "tablefile"},
    {
        "sampler",
        "exact",
        "lane",
        "cache",
        "looped",
        "packed",
        "decoder",
        "pool",
        "data",
        "loading",
        "race",
        "recorder",
    }
    | {"attempt", "dispatched", "spaces", "blocks", "corpus", "external", "instructions", "heldout"},
    {"engine", "stock", "processors", "training", "charts", "cards"},
    {"evaluation", "reproduction", "embedded", "pathway", "ui"},
    {"commands"},
    {"__init__", "__main__"},
]
SIBLINGS = {
    "model": {"foreign", "losses"},
    "options": {"foreign"},
    "recipes": {"foreign", "options"},
    "estimates": {"losses"},  # how many logits there are at once
    "corpus": {"data"},
    "external": {"corpus"},
    "instructions": {"data"},
    "heldout": {"data"},
    "counting": {"tuples"},
    "candidates": {"joint", "kernels", "sampling_options"},
    "sampling_options": {"foreign", "joint", "options"},
    "cooccurrence": {"counting", "tablefile", "tuples"},
    "tablefile": {"foreign", "tuples"},
    "ndjson": {"foreign", "trace", "jointline"},
    "jointline": {"foreign", "trace"},
    "trace": {"joint"},
    "sampler": {"attempt"},
    "exact": {"sampler"},
    "lane": {"exact", "sampler"},
    "looped": {"cache"},
    "packed": {"cache", "looped"},
    "decoder": {"cache", "packed"},
    "pool": {"cache"},
    "dispatched": {"decoder"},
    "loading": {"looped", "packed", "pool"},  # what packed copies take in memory, what may be let go
    "intervals": {"foreign"},
    "stages": {"folders"},
    "stock": {"engine", "processors"},
    "embedded": {"evaluation"},
    "reproduction": {"evaluation"},
    "commands": {"__main__"},  # the recipe of the embedded pair runs verbs
    "__main__": set(),
}
HOMES = {
    "gradio": {"ui"},
    "plotly": {"charts"},
    "accelerate": {"processes", "training"},
    "datasets": set(),
    "bitsandbytes": {"loading"},
    "numba": {"kernels"},
}

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """The module or subpackage that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported(path: Path) -> set[str]:
    """Full names of what a file imports, also inside functions; names of `from x import y` as x.y."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def layer(name: str) -> int:
    return next(level for level, rooms in enumerate(LAYERS) if name in rooms)


def test_every_room_has_its_layer():
    assert {room(path) for path in FILES} == set().union(*LAYERS)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    here = room(path)
    rooms = set().union(*LAYERS)
    for name in imported(path):
        parts = name.split(".")
        if parts[0] != "dynamo":
            continue
        there = parts[1] if len(parts) > 1 and parts[1] in rooms else "__init__"
        allowed = there == here or layer(there) < layer(here) or there in SIBLINGS.get(here, set())
        assert allowed, f"{here} imports {there}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_heavy_libraries_stay_in_their_rooms(path):
    for name in imported(path):
        library = name.split(".")[0]
        assert library not in HOMES or room(path) in HOMES[library], f"{path.name} imports {library}"


def test_importing_the_package_touches_no_network_and_no_page(imported_modules):
    """A connection would have failed the import."""
    assert not {"gradio", "plotly", "bitsandbytes", "datasets"} & imported_modules
