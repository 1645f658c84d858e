"""Upload a checkpoint or a pair to the Hugging Face Hub with a model card; its table goes with it.

Only what `load` reads is uploaded, in one commit. A README.md in the folder is used as the card, otherwise
one is written from the configuration, the table and report.json. With --heads-only the token heads go without
their base, which `load` fetches from where --base says; a base at hand is tried first. The token is that of
`hf auth login` or HF_TOKEN.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
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
    parser.add_argument(
        "--heads-only", action="store_true", help="upload the token heads in 16 bits, without their base"
    )
    parser.add_argument("--private", action="store_true", help="make the repository private if it is new")
    parser.add_argument("--dry-run", action="store_true", help="show card and files, upload nothing")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as scratch:
        return _push(arguments, upload_files(arguments, Path(scratch)))


def _push(arguments: argparse.Namespace, files: dict[str, Path | bytes]) -> dict[str, Any]:
    from huggingface_hub import HfApi

    from dynamo.hub.push import commit, explained

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


def upload_files(arguments: argparse.Namespace, scratch: Path) -> dict[str, Path | bytes]:
    """Path in the repository -> file or content, the card included. scratch: an empty folder, for heads."""
    from dynamo import loading
    from dynamo.hub.cards import REPORT_FILE, Origin, card, read_report
    from dynamo.loading.downloads import check_format
    from dynamo.model.config import AUTO_FILE
    from dynamo.model.heads_file import HEADS_FILE

    folder = arguments.folder
    if not folder.is_dir():
        raise ValueError(f"folder: there is no folder {folder}")
    if arguments.repo.count("/") != 1:
        raise ValueError(f"repo: expected OWNER/NAME, got {arguments.repo!r}")
    models, base = loading.model_folders(folder), arguments.base
    if arguments.heads_only or (folder / HEADS_FILE).is_file():
        model = models.get("dynamo", folder)
        base = base or _recorded_base(model)
        models = {"model": _heads_alone(model, base, scratch / "heads")}
    files: dict[str, Path | bytes] = {}
    for part, model in models.items():
        check_format(str(model), [file.name for file in model.iterdir()])
        for needed in ("config.json", "tokenizer.json", "*.safetensors"):
            if needed == "tokenizer.json" and (model / HEADS_FILE).is_file():
                continue  # the base has one
            if not any(model.glob(needed)):
                raise ValueError(
                    f"folder: {model} holds no {needed}; push a folder that training has finished"
                )
        prefix = "" if part == "model" else f"{part}/"
        for pattern in (*loading.HUB_FILES, AUTO_FILE):
            files |= {prefix + file.name: file for file in sorted(model.glob(pattern))}
        files[prefix + "config.json"] = _public_config(model, base)
    if (folder / REPORT_FILE).is_file():
        files[REPORT_FILE] = folder / REPORT_FILE
    if (folder / "README.md").is_file():
        return files | {"README.md": folder / "README.md"}
    if arguments.licence is None:
        raise ValueError("licence: a generated card needs --licence, that of the weights (apache-2.0 ..)")
    origin = Origin(arguments.licence, base, arguments.data, arguments.language)
    text = card(models.get("model", folder), arguments.repo, origin, read_report(folder))
    return files | {"README.md": text.encode()}


def _recorded_base(model: Path) -> str:
    """The hub id of the base that a DynaMo model names, "" where that is a folder of this machine."""
    from dynamo.loading.names import read_config

    said = read_config(model).get("base_model")
    name = str(said.get("name", "")) if isinstance(said, dict) else ""
    return name if name.count("/") == 1 and not Path(name).is_absolute() else ""


def _heads_alone(model: Path, base: str, target: Path) -> Path:
    """A folder of the model's heads alone and what lies beside them, tried on the base if it is at hand."""
    from dynamo import loading
    from dynamo.loading.downloads import check_kind, is_cached
    from dynamo.model import DynamoConfig, DynamoForCausalLM, load_dynamo
    from dynamo.model.heads_file import HEADS_FILE, origin

    if base.count("/") != 1:
        raise ValueError(f"base: expected OWNER/NAME, from where others fetch it, got {base!r}; give --base")
    check_kind(str(model), loading.model_type(model))
    if (model / HEADS_FILE).is_file():
        config = DynamoConfig.from_pretrained(model)
        config.base_model = {**(config.base_model or {}), **origin(base)}
        config.save_pretrained(target)
    else:
        load_dynamo(str(model)).save_heads(target, base)
    for pattern in loading.HUB_FILES:
        for file in model.glob(pattern):
            if not (file.name.startswith("model") or (target / file.name).exists()):
                shutil.copy(file, target)
    if is_cached(base):
        DynamoForCausalLM.from_heads(target, str(loading.resolve(base)))
    else:
        print(f"not tried on {base}, which is not in the cache", file=sys.stderr)
    return target


def _public_config(model: Path, base: str) -> bytes:
    """A model's config.json without the paths of this machine."""
    fields = json.loads((model / "config.json").read_text(encoding="utf-8"))
    for part in (fields, fields.get("text_config")):
        if isinstance(part, dict):
            part.pop("_name_or_path", None)
    if isinstance(fields.get("base_model"), dict) and not _recorded_base(model):
        fields["base_model"] |= {"name": base, "revision": ""}
    return (json.dumps(fields, indent=2) + "\n").encode()


def _text(file: Path | bytes) -> str:
    return file.decode() if isinstance(file, bytes) else file.read_text(encoding="utf-8")
