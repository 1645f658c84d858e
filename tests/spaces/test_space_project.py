"""The Space's configuration: the shipped one is right, and every mistake is named by its key."""

import shutil
from pathlib import Path

import pytest
import yaml
from huggingface_hub import SpaceCardData, metadata_load

from dynamo.__main__ import main
from dynamo.loading.names import SMOLLM2_HUB
from dynamo.spaces import SpaceProject, render_card, space_files
from dynamo.spaces.files import local_links

ROOT = Path(__file__).resolve().parents[2]
CONFIG = yaml.safe_load((ROOT / "spaces_config.yaml").read_text(encoding="utf-8"))
PROFILES = list(CONFIG["profiles"])


@pytest.fixture
def project(tmp_path):
    """A small project with a Space, whose configuration can be changed: project(changes) -> SpaceProject."""
    (tmp_path / "app.py").write_text("print('hello')\n")
    (tmp_path / "README.md").write_text("# Ours\n\n[licence](LICENSE) [site](https://example.org)\n")
    (tmp_path / "LICENSE").write_text("free\n")
    shutil.copy(ROOT / "requirements.txt", tmp_path)
    config = {
        "card": dict(CONFIG["card"]),
        "models": ["embedded"],
        "app": dict(CONFIG["app"]),
        "profiles": {"cpu": {"hardware": "cpu-basic"}, "gpu": {"hardware": "t4-small", "sleep_time": 600},
                     "zerogpu": {"hardware": "zero-a10g"}},
        "upload": ["app.py", "requirements.txt", "LICENSE", "spaces_config.yaml"],
    }  # fmt: skip

    def make(profile="gpu", **changes):
        for key, value in changes.items():
            top, _, rest = key.partition("__")
            if rest:
                config[top][rest] = value
            else:
                config[top] = value
        (tmp_path / "spaces_config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return SpaceProject.read(tmp_path, profile)

    return make


@pytest.mark.parametrize("profile", PROFILES)
def test_the_shipped_configuration_is_right_for_every_profile(profile):
    assert SpaceProject.read(ROOT, profile).problems() == []


def test_the_profiles_are_those_that_the_readme_of_a_space_may_meet():
    assert PROFILES == ["cpu", "gpu", "zerogpu"]


@pytest.mark.parametrize("profile", PROFILES)
def test_the_card_is_front_matter_and_then_the_readme(profile, tmp_path):
    """The card is front matter that the hubs library reads and then our readme."""
    card = render_card(SpaceProject.read(ROOT, profile))
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    fields = metadata_load(tmp_path / "README.md")
    assert {name: fields[name] for name in CONFIG["card"]} == CONFIG["card"]
    assert fields["suggested_hardware"] == CONFIG["profiles"][profile]["hardware"]
    assert SpaceCardData(**fields).sdk == "gradio"
    assert card.endswith((ROOT / "README.md").read_text(encoding="utf-8"))


def test_models_of_the_hub_are_named_on_the_card(project):
    assert "models" not in render_card(project())
    assert "models:\n- someone/talker\n" in render_card(project(models=["embedded", "someone/talker"]))


def test_smollm2s_base_is_fetched_while_the_space_is_built(project):
    assert "preload_from_hub" not in render_card(project())
    (item,) = yaml.safe_load(render_card(project(models=["smollm2"])).split("---")[1])["preload_from_hub"]
    repo, files = item.split(" ")
    assert repo == SMOLLM2_HUB and {"config.json", "tokenizer.json", "model.safetensors"} <= {
        *files.split(",")
    }


MISTAKES = [
    ({"card__short_description": "x" * 61}, "card.short_description: at most 60 characters, it has 61"),
    ({"card__colorFrom": "teal"}, "card.colorFrom: expected one of red, "),
    ({"card__python_version": 3.1}, "card.python_version: put it in quotes; unquoted, 3.1 is a number"),
    ({"card__sdk_version": "6.0.0"}, "card.sdk_version: 6.0.0, but requirements.txt pins gradio at "),
    ({"card__sdk": "docker"}, "card.sdk: expected gradio"),
    ({"card__app_file": "main.py"}, "card.app_file: there is no file main.py"),
    (
        {"card__hardware": "t4-small"},
        "card.hardware: the hub knows no such key; hardware belongs to a profile",
    ),
    ({"card__title": ""}, "card.title: it is missing"),
    ({"profiles__gpu": {"hardware": "h100"}}, "profiles.gpu.hardware: expected one of cpu-basic, "),
    (
        {"profiles__gpu": {"hardware": "cpu-basic", "sleep_time": 600}},
        "profiles.gpu.sleep_time: cpu-basic sleeps",
    ),
    (
        {"profiles__gpu": {"hardware": "t4-small", "sleep_time": 5}},
        "profiles.gpu.sleep_time: expected seconds",
    ),
    (
        {"profiles__gpu": {"hardware": "t4-small", "quantize": "int8"}},
        "profiles.gpu.quantize: expected 8bit or",
    ),
    (
        {"profiles__gpu": {"hardware": "zero-a10g", "quantize": "4bit"}},
        "profiles.gpu.quantize: a GPU packs layers, and ZeroGPU loads without one",
    ),
    (
        {"profiles__gpu": {"hardware": "t4-small", "gpu_seconds": 600}},
        "profiles.gpu.gpu_seconds: expected 1 to",
    ),
    ({"profiles__gpu": {"hardware": "t4-small", "speed": 9}}, "profiles.gpu.speed: unknown"),
    ({"profiles__gpu": {"hardware": "t4-small", "models": []}}, "models: expected a list of names"),
    ({"variables": {"A B": "x"}}, "variables.A B: no name for a variable"),
    ({"variables": {"DEBUG": True}}, "variables.DEBUG: put the value in quotes, got True"),
    ({"secrets": [{"HF_TOKEN": "hf_x"}]}, "secrets: list names only"),
    ({"secrets": ["KEY"], "variables": {"KEY": "x"}}, "secrets.KEY: it is a variable too"),
    ({"upload": ["nothing/**"]}, "upload: no file matches 'nothing/**'"),
    ({"upload": []}, "upload: list the patterns"),
    ({"app__queue_size": 0}, "queue_size: expected 1 or more"),
]


@pytest.mark.parametrize(("changes", "sentence"), MISTAKES, ids=[sentence for _, sentence in MISTAKES])
def test_a_mistake_is_named_by_its_key(project, changes, sentence):
    assert project().problems() == []
    problems = project(**changes).problems()
    assert len(problems) == 1 and sentence in problems[0]


def test_zerogpu_has_its_own_versions(project):
    made = project("zerogpu", card__python_version="3.11")
    assert made.problems() == ["card.python_version: ZeroGPU has 3.10, 3.10.13, 3.12, 3.12.12, got '3.11'"]
    made = project("zerogpu", card__python_version="3.12")
    requirements = made.root / "requirements.txt"
    requirements.write_text(requirements.read_text().replace("torch==2.13.0", "torch==2.15.0"))
    assert ["ZeroGPU runs torch" in problem for problem in made.problems()] == [True]
    requirements.write_text("--extra-index-url https://example.org/cpu\n" + requirements.read_text())
    assert any("a CPU build of torch" in problem for problem in made.problems())


def test_an_unknown_profile_is_refused(project):
    with pytest.raises(ValueError, match="profile: "):
        project("tpu")


def test_files_are_those_of_the_patterns_and_the_rendered_card(project):
    made = project()
    (made.root / "secret.txt").write_text("not in any pattern")
    files = space_files(made)
    assert sorted(files) == ["LICENSE", "README.md", "app.py", "requirements.txt", "spaces_config.yaml"]
    assert files["README.md"].decode() == render_card(made)


def test_a_readme_that_points_outside_the_space_is_refused(project):
    made = project(upload=["app.py", "requirements.txt", "spaces_config.yaml"])
    with pytest.raises(ValueError, match=r"README\.md links to LICENSE, which would not be in the Space"):
        space_files(made)


def test_links_are_found_in_text_and_images():
    found = local_links("[a](docs/a.md#x) ![b](b.png) [c](https://c.org) [d](#d) [e](README.md)")
    assert found == ["b.png", "docs/a.md"]


def test_check_names_every_mistake_and_render_writes_the_folder(project, tmp_path, capsys):
    made = project(card__colorFrom="teal", card__title="")
    assert main(["space", "check", "--root", str(made.root)]) == 2
    message = capsys.readouterr().err
    assert "card.colorFrom" in message and "card.title" in message and "2 to be corrected" in message
    made = project(card__colorFrom="red", card__title="T")
    assert main(["space", "check", "--root", str(made.root)]) == 0
    target = tmp_path / "space"
    assert (
        main(["space", "render", "--profile", "cpu", "--root", str(made.root), "--output", str(target)]) == 0
    )
    assert sorted(path.name for path in target.iterdir()) == sorted(space_files(made))
    assert (
        main(["space", "render", "--profile", "cpu", "--root", str(made.root), "--output", str(target)]) == 2
    )
