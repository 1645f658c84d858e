"""From a Pythia base to a Space: the whole path of a chat pair, as a list of this project's own commands.

base -> heads -> finetune (DynaMo and base alike, so that heads are compared and not finetuning) -> table ->
pair -> evaluation -> push -> Space. Each stage is resumed or skipped by its result; time and memory are
estimated before anything starts. Raw Pythia tokenizers have no chat template: ours is added where the model
will learn it, and an untuned model stays one that completes text.
"""

from __future__ import annotations

import json
import shlex
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dynamo import loading
from dynamo.common.files import replace_folder, write_json
from dynamo.data import text
from dynamo.hub.cards import REPORT_FILE
from dynamo.loading import TABLE_FILE
from dynamo.loading.names import check_format
from dynamo.pipelines.stages import Stage
from dynamo.training.recipes import RECIPES


@dataclass(frozen=True)
class RecipeRun:
    """What one run of the path is asked for.

    recipe: a name of `dynamo.training.recipes`; base: the model to start from, the recipe's own if ""; data,
    validation: what the heads are trained and measured on; instructions: what both are finetuned on, None for
    a model that completes text; repo, space: hub ids, "" leaves out push and Space; train, finetune: further
    flags of these commands.
    """

    recipe: str
    work: Path
    data: str
    validation: str
    base: str = ""
    instructions: str | None = None
    heads: int = 3
    prompts: int = 10
    licence: str = ""
    repo: str = ""
    space: str = ""
    profile: str = "zerogpu"
    train: str = ""
    finetune: str = ""

    def __post_init__(self):
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {self.recipe!r}")
        if self.repo and not self.licence:
            raise ValueError("licence: a pushed model needs --licence, that of its weights (apache-2.0 ..)")
        if self.space and not self.repo:
            raise ValueError(
                "space: a Space loads its model from the hub; give --repo, where it is pushed to"
            )
        for name, file in (("data", self.data), ("validation", self.validation)):
            if not Path(file).exists() and (name == "validation" or file.count("/") != 1):
                raise ValueError(f"{name}: there is no file {file}")
        if self.instructions is not None and not Path(self.instructions).is_file():
            raise ValueError(f"instructions: there is no file {self.instructions}")

    @property
    def source(self) -> str:
        return self.base or RECIPES[self.recipe].base

    @property
    def pair(self) -> Path:
        return self.work / "pair"


def stages(path: RecipeRun) -> list[Stage]:
    """The stages in order."""
    work = path.work
    base, heads = work / "base", work / "heads" / "model"
    found = [
        Stage("base", [], base, action=partial(fetch_base, path.source, base, path.instructions is not None)),
        Stage("heads", ["train", "--recipe", path.recipe, "--model", str(base), "--heads", str(path.heads),
                        "--data", path.data, "--validation", path.validation,
                        "--output", str(work / "heads"), *shlex.split(path.train)], heads),
    ]  # fmt: skip
    if path.instructions is not None:
        for name, start in (("chat", heads), ("chat-base", base)):
            arguments = ["finetune", "--model", str(start), "--data", path.instructions,
                         "--output", str(work / name), *shlex.split(path.finetune)]  # fmt: skip
            found.append(Stage(name, arguments, work / name / "model"))
        base, heads = work / "chat-base" / "model", work / "chat" / "model"
    table = work / TABLE_FILE
    pair, losses, speed = str(path.pair), work / "perplexity.json", work / "sweep.json"
    found += [
        Stage("table", ["count", "--tokenizer", str(heads), "--data", path.data, "--order",
                        str(max(2, path.heads)), "--output", str(table)], table),
        Stage("pair", [], path.pair, action=partial(assemble, base, heads, table, path.pair)),
        Stage("losses", ["perplexity", "--model", pair, "--data", path.validation], losses, captured=True),
        Stage("speed", ["sweep", "--model", pair, "--seeds", "1", "--limit", str(path.prompts),
                        "--output", str(speed)], speed),
        Stage("report", [], path.pair / REPORT_FILE,
              action=lambda: write_report(found, losses, speed, path.pair)),
    ]  # fmt: skip
    if path.repo:
        data = f"Heads: {Path(path.data).name}."
        if path.instructions is not None:
            data += f" Finetuning: {Path(path.instructions).name}."
        base_id = [] if Path(path.source).exists() else ["--base", path.source]
        arguments = ["push", pair, path.repo, "--licence", path.licence, *base_id, "--data", data]
        found.append(Stage("push", arguments, work / _told_of("push", path.repo), captured=True))
    if path.space:
        arguments = ["space", "deploy", "--repo", path.space, "--profile", path.profile, "--model", path.repo]
        found.append(Stage("space", arguments, work / _told_of("space", path.space), captured=True))
    return found


def _told_of(stage: str, repo_id: str) -> str:
    """What a stage said of one repository: another one has not been served yet."""
    return f"{stage}--{repo_id.replace('/', '--')}.json"


def fetch_base(name: str, target: Path, chat: bool) -> None:
    """A stock model's files and tokenizer as a folder of its own; with `chat` it gets our template.

    Raises ValueError for what is no GPT-NeoX, or has no room for the template's tokens.
    """
    source = loading.resolve(name)
    check_format(name, [file.name for file in source.iterdir()])
    if loading.model_type(source) != "gpt_neox":
        raise ValueError(f"base: {name} is no GPT-NeoX (Pythia), but {loading.model_type(source)!r}")
    part = target.with_name(target.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for pattern in ("config.json", "generation_config.json", "*.safetensors", "*.index.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, part / file.name)
    tokenizer = loading.load_tokenizer(source)
    if chat and not text.has_chat_template(tokenizer):
        text.add_chat_template(tokenizer)
    vocabulary = json.loads((part / "config.json").read_text(encoding="utf-8"))["vocab_size"]
    if len(tokenizer) > vocabulary:
        raise ValueError(
            f"base: {name} has {vocabulary} ids and the chat template needs {len(tokenizer)}; resize its "
            "embeddings first (resize_token_embeddings)"
        )
    tokenizer.save_pretrained(part)
    replace_folder(part, target)


def assemble(base: Path, dynamo: Path, table: Path, target: Path) -> None:
    """A pair folder of finished parts."""
    part = target.with_name(target.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    shutil.copytree(base, part / "base")
    shutil.copytree(dynamo, part / "dynamo")
    shutil.copyfile(table, part / "dynamo" / TABLE_FILE)
    replace_folder(part, target)


def write_report(found: list[Stage], losses: Path, speed: Path, pair: Path) -> None:
    """What the card is written from; the commands without the names of this machine's folders."""
    work = str(pair.parent)
    commands = [
        " ".join(Path(word).name if Path(word).is_absolute() else word
                 for word in stage.command().replace(work, "WORK").split(" "))
        for stage in found if stage.arguments and stage.arguments[0] not in ("push", "space")
    ]  # fmt: skip
    report: dict[str, Any] = {
        "perplexity": json.loads(losses.read_text(encoding="utf-8")),
        "sweep": json.loads(speed.read_text(encoding="utf-8")),
        "commands": commands,
    }
    report["perplexity"]["model"] = report["sweep"]["model"] = "this pair"
    write_json(pair / REPORT_FILE, report)
