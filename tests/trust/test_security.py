"""What SECURITY.md promises: its tests exist, nothing is unpickled, versions and licences are told."""

from __future__ import annotations

import ast
import importlib.util
import re
import sqlite3
from pathlib import Path

import pytest
from processes import printed

from dynamo.ui.compare.votes import VOTES_FILE, VoteBook

ROOT = Path(__file__).resolve().parents[2]
SECURITY = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`(tests/[\w/]+\.py)::(test_\w+)`", SECURITY)
REQUIREMENTS = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()


def test_every_test_that_is_named_exists():
    assert len(NAMED) > 25
    for file, name in NAMED:
        tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
        assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, name


FORBIDDEN = {
    "pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.loads", "joblib.load",
    "dill.load", "eval", "exec", "yaml.load", "yaml.unsafe_load", "os.system", "shelve.open",
}  # fmt: skip


MODULES = [*sorted((ROOT / "dynamo").rglob("*.py")), ROOT / "app.py"]


def test_no_module_unpickles_or_evaluates():
    for path in MODULES:
        calls = (
            node
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        )
        for node in calls:
            check_call(path, node)


def check_call(path, node):
    called = ast.unparse(node.func)
    assert called not in FORBIDDEN, f"{path}:{node.lineno}: {called}"
    if called == "torch.load":  # a run's own checkpoint; tensors and plain values alone
        assert "weights_only" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"
    for keyword in node.keywords:
        told = f"{path}:{node.lineno}: {called}({keyword.arg})"
        value = keyword.value
        assert keyword.arg not in ("allow_pickle", "shell"), told
        if keyword.arg == "trust_remote_code":
            assert isinstance(value, ast.Constant) and value.value is False, told
        if keyword.arg in ("weights_only", "use_safetensors"):
            assert isinstance(value, ast.Constant) and value.value is True, told


def test_nothing_is_unpickled_while_a_pair_is_loaded_and_run():
    code = (
        "import sys\n"
        "import dynamo\n"
        "from dynamo import Engine, SamplingOptions, load\n"
        "def hook(event, arguments):\n"
        "    if event == 'pickle.find_class': raise SystemExit(f'unpickled {arguments}')\n"
        "sys.addaudithook(hook)\n"
        "import pickle\n"
        "try: pickle.loads(pickle.dumps(dynamo.Engine))\n"
        "except SystemExit: print('the hook sees')\n"
        "pair = load('embedded', device='cpu')\n"
        "steps = list(Engine(pair.dynamo, pair.table).stream([5, 6, 7], SamplingOptions(), 4))\n"
        "print(len(steps) > 0)\n"
    )
    assert printed(code, PATH="", DYNAMO_KERNELS="numpy").splitlines() == ["the hook sees", "True"]


def test_a_vote_has_no_room_for_words(tmp_path):
    book = VoteBook(tmp_path)
    kept = {"model": "m", "speed_up": 1.0, "tokens_per_forward": 1.0, "outcome": "tie"}
    book.add(options={"threshold": 0.5}, **kept)
    for options in (
        {"threshold": 0.5, "prompt": "my secret"},
        {"threshold": 0.5, "opponent": "My secret prompt"},
    ):
        with pytest.raises(ValueError, match="must be a number or a switch"):
            book.add(options=options, **kept)
    assert b"secret" not in (tmp_path / VOTES_FILE).read_bytes()
    columns = sqlite3.connect(tmp_path / VOTES_FILE).execute("PRAGMA table_info(votes)").fetchall()
    assert {column[1] for column in columns} == {
        "id", "time", "model", "threshold", "options", "speed_up", "tokens_per_forward", "outcome",
    }  # fmt: skip


def test_every_requirement_is_pinned_and_its_licence_is_told():
    told = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    pins = [
        re.fullmatch(r"([\w.-]+)(?:\[[\w,-]+\])?==([\w.]+)(?:  # .+)?", line)
        for line in REQUIREMENTS
        if line[:1] != "#"
    ]
    assert len(pins) > 10 and all(pins)
    for pin in pins:
        name = re.sub(r"[-_.]+", "-", pin[1]).lower()
        assert f"| **{name}** | {pin[2]} | " in told, f"{name}: run tools/licences.py again"
    assert "not stated" not in told and "CC BY-SA 4.0" in told


def test_the_licence_page_is_what_its_command_writes():
    spec = importlib.util.spec_from_file_location("licences", ROOT / "tools" / "licences.py")
    licences = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(licences)
    written = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
    own = {licences.named(each.name) for each in licences.direct()}
    for line in licences.page().splitlines():
        if any(line.startswith(f"| **{name}** ") for name in own):
            assert line in written
