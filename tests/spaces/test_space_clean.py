"""The app in exactly the folder that would be deployed, in a clean environment: nothing else is in reach."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import venv
from functools import cache
from importlib import metadata
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from visitors import client_of, serving

from dynamo.spaces import SpaceProject, space_files
from dynamo.spaces.files import write_folder

ROOT = Path(__file__).resolve().parents[2]
ID = "someone/dynamo"
OURS = {"app", "dynamo"}
PYTHON = [sys.executable, "-E", "-s"]  # no PYTHONPATH, no packages of the user's own
HELPERS = {"_distutils_hack"}  # of the virtual environment itself
PEERS = {"llama_cpp", "ctranslate2"}  # of the benchmark, each in a process of its own, where it is installed
GRADIOS_OWN = {"starlette"}  # what its page is a part of; the version is Gradio's business
WITHOUT = """
import json, sys
from importlib.machinery import PathFinder
hidden = set(json.loads(sys.argv.pop(1)))
class Installed(PathFinder):
    @classmethod
    def find_spec(cls, name, *more):
        return None if name.split(".")[0] in hidden else super().find_spec(name, *more)
sys.meta_path[sys.meta_path.index(PathFinder)] = Installed
sys.path.insert(0, "")
"""
# The app then answers in numpy: a new folder has all loops to compile, and one shows that they can be.
IMPORT_EVERYTHING_AND_RUN = (
    WITHOUT
    + """
import importlib, os, pkgutil, runpy
import app, dynamo
from huggingface_hub import constants
assert constants.HF_HUB_DISABLE_XET  # its downloads cannot be cancelled
for module in pkgutil.walk_packages(dynamo.__path__, "dynamo."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
import numpy
assert dynamo.kernels.loops().drawn(numpy.array([0.0, 1.0]), 0.5) == 1  # compiled
files = {name: getattr(module, "__file__", None) for name, module in sys.modules.items()}
files = {name: file for name, file in files.items() if isinstance(file, str) and file[:1] == "/"}
with open(sys.argv.pop(1), "w") as imported:
    json.dump(files, imported)
os.environ["DYNAMO_KERNELS"] = "numpy"
dynamo.kernels.loops.cache_clear()
runpy.run_path("app.py", run_name="__main__")
"""
)


packages_distributions = cache(metadata.packages_distributions)  # reads every file list: two seconds
pytestmark = pytest.mark.timeout(900)  # a new process imports everything, and answers


@pytest.fixture(scope="module")
def space_folder(tmp_path_factory):
    """What would be uploaded, and nothing else of the project."""
    folder = tmp_path_factory.mktemp("space") / "app"
    write_folder(space_files(SpaceProject.read(ROOT, "cpu")), folder)
    return folder


def clean_environment(home: Path) -> dict[str, str]:
    """What `env -i` leaves, an empty home, and what a Space sets."""
    home.mkdir()
    return {
        "PATH": os.environ["PATH"], "HOME": str(home), "HF_HUB_OFFLINE": "1", "SPACE_ID": ID,
        "DYNAMO_PROFILE": "cpu", "GRADIO_ANALYTICS_ENABLED": "False",
    }  # fmt: skip


@pytest.mark.skipif("DYNAMO_TEST_INSTALL" not in os.environ, reason="installs torch: make test-space")
@pytest.mark.timeout(3600)
def test_the_app_answers_from_what_is_uploaded_and_its_requirements_installed(space_folder, tmp_path):
    """A virtual environment of its own, as the hub makes it, which is gone afterwards."""
    with TemporaryDirectory(prefix="dynamo-space-") as folder:
        venv.create(folder, with_pip=True)
        python = str(Path(folder) / "bin" / "python")
        subprocess.run(
            [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "-r",
             str(space_folder / "requirements.txt")],
            check=True,
        )  # fmt: skip
        check_answers([python, "-E", "-s", "app.py"], space_folder, tmp_path)


def check_answers(command: list[str], folder: Path, tmp_path: Path) -> None:
    """The app, started by `command` in a folder, serves its page and lets both models answer."""
    environment = clean_environment(tmp_path / "home")
    with serving(command, tmp_path / "log.txt", environment, folder) as page:
        answer = client_of(page.url).predict("I need a hotel.", max_new_tokens=8, api_name="/compare")
    assert answer["base"]["tokens"] and answer["dynamo"]["tokens"]
    assert not (folder / "votes").exists()


def test_it_answers_and_all_that_it_imports_is_uploaded_or_required(space_folder, tmp_path):
    """No file of this project is in reach, and no package that requirements.txt does not bring: of a process
    that has imported everything and whose app then answered."""
    code = [*PYTHON, "-c", IMPORT_EVERYTHING_AND_RUN, not_required(), str(tmp_path / "imported.json")]
    check_answers(code, space_folder, tmp_path)
    imported = json.loads((tmp_path / "imported.json").read_text())
    assert {"app", "dynamo.ui.compare.service", "dynamo.spaces.app", "torch", "gradio"} <= imported.keys()
    packages, brought = packages_distributions(), installed_by(ROOT / "requirements.txt")
    standard, site = Path(os.__file__).parent, Path(sysconfig.get_path("purelib"))
    for name, file in imported.items():
        place = Path(file)
        if place.is_relative_to(space_folder):
            assert name.split(".")[0] in OURS
        elif place.is_relative_to(site):
            top = place.relative_to(site).parts[0].split(".")[0]
            owners = {canonicalize_name(each) for each in packages.get(top, [])}
            assert owners & brought or top in HELPERS, f"{name}: {file} is of {owners or 'no package'}"
        else:
            assert place.is_relative_to(standard), f"{name}: {file}"


def test_what_is_imported_by_name_is_pinned_by_name(space_folder):
    """Also what only a function imports, and not for being something else's dependency."""
    pins = {
        canonicalize_name(Requirement(line).name) for line in requirement_lines(ROOT / "requirements.txt")
    }
    packages = packages_distributions()
    for path in space_folder.rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(source)):
            found = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            found += [node.module] if isinstance(node, ast.ImportFrom) else []
            for top in {name.split(".")[0] for name in found} - OURS - PEERS - sys.stdlib_module_names:
                owners = {canonicalize_name(each) for each in packages.get(top, [top])}
                asked_for = f'find_spec("{top}")' in source  # it does without where it is not there
                assert owners & (pins | GRADIOS_OWN) or asked_for, f"{path.name} imports {top}"


def requirement_lines(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines() if line and not line.startswith("#")]


def not_required() -> str:
    """Names, as JSON, that can be imported here and could not where only requirements.txt is installed."""
    brought = installed_by(ROOT / "requirements.txt")
    owners = packages_distributions()
    return json.dumps(
        [top for top, names in owners.items() if not {*map(canonicalize_name, names)} & brought]
    )


def installed_by(requirements: Path) -> set[str]:
    """The packages that an installation of these requirements brings, dependencies included."""
    waiting, seen = [Requirement(line) for line in requirement_lines(requirements)], set()
    while waiting:
        asked = waiting.pop()
        key = (canonicalize_name(asked.name), frozenset(asked.extras))
        if key in seen:
            continue
        seen.add(key)
        try:
            needed = distribution(asked.name).requires or []
        except PackageNotFoundError:
            continue  # asked for by other systems
        for each in map(Requirement, needed):
            extras = asked.extras or {""}
            if each.marker is None or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                waiting.append(each)
    return {name for name, _ in seen}
