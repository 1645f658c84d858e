"""The files of the Space: its README, which is the card and our README, and exactly what the app needs."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from dynamo.loading.names import SMOLLM2, SMOLLM2_HUB
from dynamo.spaces.project import SpaceProject, is_inside

IGNORED = ("__pycache__", ".DS_Store")
# Fetched while the Space is built; the whole repository has copies in other formats.
SMOLLM2_FILES = (
    "config.json", "generation_config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json",
    "tokenizer_config.json",
)  # fmt: skip
HUB_PREFIXES = ("http://", "https://", "#", "mailto:")


def render_card(project: SpaceProject) -> str:
    """The Space's README.md: front matter from the configuration, then the project's own README."""
    fields = dict(project.card)
    hub_models = [name for name in project.models if name.count("/") == 1]
    if hub_models:
        fields["models"] = hub_models
    if SMOLLM2 in project.models:
        preloaded = fields.get("preload_from_hub", [])
        fields["preload_from_hub"] = [*preloaded, f"{SMOLLM2_HUB} {','.join(SMOLLM2_FILES)}"]
    fields["suggested_hardware"] = project.hardware
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)
    readme = (project.root / "README.md").read_text(encoding="utf-8")
    return f"---\n{front}---\n\n{readme}"


def space_files(project: SpaceProject) -> dict[str, Path | bytes]:
    """Path in the Space -> file here, by the configuration's patterns; the README is rendered.

    Raises ValueError where the README points to a file that would not be there.
    """
    outside = [pattern for pattern in project.upload if not is_inside(pattern)]
    if outside:
        raise ValueError(f"upload: {', '.join(outside)} leads out of the project's folder")
    inside = project.root.resolve()
    found = (path for pattern in project.upload for path in project.root.glob(pattern))
    files: dict[str, Path | bytes] = {
        path.relative_to(project.root).as_posix(): path
        for path in sorted(found)
        if path.is_file()
        and path.resolve().is_relative_to(inside)  # or a link would publish a file from elsewhere
        and not any(part in IGNORED or part.endswith(".pyc") for part in path.parts)
    }
    card = render_card(project)
    missing = [link for link in local_links(card) if link not in files and not _folder_of(link, files)]
    if missing:
        raise ValueError(
            f"upload: README.md links to {', '.join(missing)}, which would not be in the Space; add the "
            "pattern to `upload`"
        )
    return files | {"README.md": card.encode()}


def local_links(markdown: str) -> list[str]:
    """Targets of links and images that lie in the repository, README.md itself left out."""
    targets = (target.split("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", markdown)
               if not target.startswith(HUB_PREFIXES))  # fmt: skip
    return sorted(set(targets) - {"README.md", ""})


def _folder_of(link: str, files: dict[str, Path | bytes]) -> bool:
    return any(path.startswith(link.rstrip("/") + "/") for path in files)


def write_folder(files: dict[str, Path | bytes], target: Path) -> None:
    """The Space as a folder, as it would be uploaded. Raises ValueError unless `target` is new or empty."""
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"output: {target} is not empty; name a new folder")
    for path, file in files.items():
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file if isinstance(file, bytes) else file.read_bytes())
