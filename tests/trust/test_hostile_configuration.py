"""A Space's configuration that a stranger wrote: any value of any key, hostile YAML, links to elsewhere."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import yaml
from hostile import changed, places, refusal

from dynamo.spaces import SpaceProject, read_config
from dynamo.spaces.files import render_card, space_files

ROOT = Path(__file__).resolve().parents[2]
SPACE = yaml.safe_load((ROOT / "spaces_config.yaml").read_text(encoding="utf-8"))


@pytest.fixture
def space(tmp_path):
    for name in ("requirements.txt", "README.md", "app.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def use_space(root: Path, text: str) -> None:
    (root / "spaces_config.yaml").write_text(text, encoding="utf-8")
    for profile in ("cpu", "zerogpu", ""):
        read_config(root / "spaces_config.yaml", {"DYNAMO_PROFILE": profile})
    project = SpaceProject.read(root, "zerogpu")
    project.problems()
    render_card(project)
    for path in space_files(project):
        assert not path.startswith(("/", "..")), path


STRANGE = (None, True, -1, 1.5, 10**400, "", "x", "../../etc", "/etc/passwd", "\u202e", "a\nb", [], [None],
           [[]], ["../*"], ["/etc/*"], {}, {"a": 1}, {5: {}})  # fmt: skip


@pytest.mark.parametrize("place", list(places(SPACE)), ids=str)
def test_any_value_in_any_key_of_the_configuration_is_taken_or_refused(space, place, monkeypatch):
    monkeypatch.setattr(yaml, "safe_load", partial(yaml.load, Loader=yaml.CSafeLoader))  # ten times as fast
    for value in STRANGE:
        text = yaml.dump(changed(SPACE, place, value), Dumper=yaml.CSafeDumper)
        refusal(lambda text=text: use_space(space, text))


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{','.join(['*' + old] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    ["[" * 20_000, "{a: " * 9_000, BOMB + "models: *i\n", '!!python/object/apply:os.abort []', "&a [*a]",
     "a: \x07", "<<: 5", "? [a]\n: b", "a: 2020-99-99"],
    ids=["nested", "nested keys", "bomb", "code", "itself", "control", "merge", "key", "date"],
)  # fmt: skip
def test_hostile_yaml_is_refused(space, text):
    assert refusal(lambda: use_space(space, text)) is not None


def test_a_link_out_of_the_folder_is_not_uploaded(space, tmp_path_factory):
    secret = tmp_path_factory.mktemp("elsewhere") / "secret.txt"
    secret.write_text("secret")
    (space / "linked.txt").symlink_to(secret)
    config = {**SPACE, "upload": ["*.txt"]}
    (space / "spaces_config.yaml").write_text(yaml.safe_dump(config))
    (space / "README.md").write_text("# x\n")
    files = space_files(SpaceProject.read(space, "zerogpu"))
    assert "requirements.txt" in files and "linked.txt" not in files
