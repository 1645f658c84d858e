"""Upload a checkpoint or a pair to the Hugging Face Hub with a model card; its table goes with it.

Only what `load` reads is uploaded, in one commit. A README.md in the folder is used as the card, otherwise
one is written from the configuration, the table and report.json. The token is that of `hf auth login` or
HF_TOKEN.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="DynaMo checkpoint, or pair with base/ and dynamo/")
    parser.add_argument("repo", help="hub id, OWNER/NAME; created if it does not exist")
    parser.add_argument(
        "--licence", help="of the weights, as the hub abbreviates it: apache-2.0, cc-by-sa-4.0"
    )
    parser.add_argument("--base", default="", help="hub id of the model that it was made from")
    parser.add_argument("--data", default="", help="what it was trained on, a sentence")
    parser.add_argument("--language", default="en", help="of the model's texts (default: en)")
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--dry-run", action="store_true", help="show card and files, upload nothing")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from huggingface_hub import HfApi

    from dynamo.hub.push import commit, explained

    files = upload_files(arguments)
    sizes = {
        path: len(file) if isinstance(file, bytes) else file.stat().st_size for path, file in files.items()
    }
    for path, size in sizes.items():
        print(f"{size / 1e6:10.2f} MB  {path}", file=sys.stderr)
    result = {"repo": arguments.repo, "files": sorted(files), "bytes": sum(sizes.values())}
    if arguments.dry_run:
        print(_text(files["README.md"]), file=sys.stderr)
        return {**result, "uploaded": False}
    api = HfApi()
    with explained(f"creating {arguments.repo}"):
        api.create_repo(arguments.repo, private=arguments.private, exist_ok=True)
    url, _ = commit(api, arguments.repo, "model", files, "Upload a DynaMo model")
    return {**result, "uploaded": True, "commit": url}


def upload_files(arguments: argparse.Namespace) -> dict[str, Path | bytes]:
    """Path in the repository -> file or content, the card included."""
    from dynamo import loading
    from dynamo.hub.cards import REPORT_FILE, Origin, card
    from dynamo.loading.downloads import check_format

    folder = arguments.folder
    if not folder.is_dir():
        raise ValueError(f"folder: there is no folder {folder}")
    if arguments.repo.count("/") != 1:
        raise ValueError(f"repo: expected OWNER/NAME, got {arguments.repo!r}")
    files: dict[str, Path | bytes] = {}
    for part, model in loading.model_folders(folder).items():
        check_format(str(model), [file.name for file in model.iterdir()])
        for needed in ("config.json", "tokenizer.json", "*.safetensors"):
            if not any(model.glob(needed)):
                raise ValueError(
                    f"folder: {model} holds no {needed}; push a folder that training has finished"
                )
        prefix = "" if part == "model" else f"{part}/"
        for pattern in loading.HUB_FILES:
            files |= {prefix + file.name: file for file in sorted(model.glob(pattern))}
    if (folder / REPORT_FILE).is_file():
        files[REPORT_FILE] = folder / REPORT_FILE
    if (folder / "README.md").is_file():
        return files | {"README.md": folder / "README.md"}
    if arguments.licence is None:
        raise ValueError("licence: a generated card needs --licence, that of the weights (apache-2.0 ..)")
    origin = Origin(arguments.licence, arguments.base, arguments.data, arguments.language)
    return files | {"README.md": card(folder, arguments.repo, origin).encode()}


def _text(file: Path | bytes) -> str:
    return file.decode() if isinstance(file, bytes) else file.read_text(encoding="utf-8")
