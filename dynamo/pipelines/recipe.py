"""From a Pythia base to a Space: the whole path of a chat pair, as a list of stages.

base -> heads -> finetune (DynaMo and base alike, so that heads are compared and not finetuning) -> table ->
pair -> evaluation -> push -> Space. Each stage is resumed or skipped by its result; time and memory are
estimated before anything starts. Raw Pythia tokenizers have no chat template: ours is added where the model
will learn it, and an untuned model stays one that completes text.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from dynamo import loading
from dynamo.common.files import replace_folder, write_json
from dynamo.common.options import from_values, option, required
from dynamo.data import text
from dynamo.data.reading import DATA_HELP
from dynamo.data.sources import data_files, is_piped, local_files
from dynamo.hub.cards import REPORT_FILE
from dynamo.loading import TABLE_FILE
from dynamo.loading.downloads import check_format
from dynamo.model.architectures import architecture_of_type
from dynamo.pipelines.stages import Stage, commands_of
from dynamo.training.options import FinetuningRun, accept_one_name, training_run
from dynamo.training.recipes import RECIPES


@dataclass(frozen=True)
class RecipeRun:
    """Options of one run of the path. Without instructions the model completes text; without a repo nothing
    is pushed.

    train, finetune: values by name for `training_run` and `FinetuningRun`, in place of the recipe's and of
    the path's own.
    """

    recipe: str
    work: Path
    data: tuple[str, ...] = required("what the heads learn: " + DATA_HELP)
    validation: str = required("the same, held out: one of these")
    instructions: str | None = option(None, "what both models are finetuned on, for chat: one of these")
    base: str = option("", "folder, GGUF file or hub id to start from, instead of the recipe's")
    heads: int = option(3, "token heads, 1 to 5")
    prompts: int = option(10, "prompts of the evaluation")
    licence: str = option("", "of the weights, for --repo: apache-2.0, cc-by-nc-4.0 ..")
    repo: str = option("", "hub id that the pair is pushed to")
    space: str = option("", "hub id of the Space that shows it")
    profile: str = option("zerogpu", "the Space's profile")
    train: Mapping[str, Any] = field(default_factory=dict)
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self):
        accept_one_name(self)
        if self.recipe not in RECIPES:
            raise ValueError(f"recipe: expected one of {', '.join(RECIPES)}, got {self.recipe!r}")
        if self.repo and not self.licence:
            raise ValueError("licence: a pushed model needs --licence, that of its weights (apache-2.0 ..)")
        if self.space and not self.repo:
            raise ValueError(
                "space: a Space loads its model from the hub; give --repo, where it is pushed to"
            )
        for name, given in self._data().items():
            for each in given:
                if is_piped(each):
                    raise ValueError(f"{name}: several stages read it; write what is piped in to a file")
                local_files(each, name)

    def _data(self) -> dict[str, Sequence[str]]:
        """What is read, by the option that names it."""
        instructions = () if self.instructions is None else (self.instructions,)
        return {"data": self.data, "validation": (self.validation,), "instructions": instructions}

    def fetch_data(self) -> None:
        """Fetch what the hub has of the data. Raises ValueError and OSError, naming the option."""
        for name, given in self._data().items():
            data_files(given, name)

    @property
    def source(self) -> str:
        return self.base or RECIPES[self.recipe].base

    @property
    def pair(self) -> Path:
        return self.work / "pair"


def stages(run: RecipeRun) -> list[Stage]:
    """The stages in order."""
    work = run.work
    base, heads = work / "base", work / "heads" / "model"
    training = {
        "recipe": run.recipe,
        "model": str(base),
        "heads": run.heads,
        "data": run.data,
        "validation": run.validation,
        "output": work / "heads",
    }
    found = [
        Stage("base", partial(fetch_base, run.source, base, run.instructions is not None), base),
        Stage("heads", training_run(**training | run.train), heads),
    ]
    if run.instructions is not None:
        for name, start in (("chat", heads), ("chat-base", base)):
            finetuning = {"model": str(start), "data": run.instructions, "output": work / name}
            task = from_values(FinetuningRun, finetuning | run.finetune)
            found.append(Stage(name, task, work / name / "model"))
        base, heads = work / "chat-base" / "model", work / "chat" / "model"
    table = work / TABLE_FILE
    pair, losses, speed = str(run.pair), work / "perplexity.json", work / "sweep.json"
    found += [
        Stage("table", ["count", "--tokenizer", str(heads), "--data", *run.data, "--order",
                        str(max(2, run.heads)), "--output", str(table)], table),
        Stage("pair", partial(assemble, base, heads, table, run.pair), run.pair),
        Stage("losses", ["perplexity", "--model", pair, "--data", run.validation], losses, captured=True),
        Stage("speed", ["sweep", "--model", pair, "--seeds", "1", "--limit", str(run.prompts),
                        "--output", str(speed)], speed),
        Stage("report", lambda: write_report(found, losses, speed, run.pair), run.pair / REPORT_FILE),
    ]  # fmt: skip
    if run.repo:
        data = f"Heads: {', '.join(Path(name).name for name in run.data)}."
        if run.instructions is not None:
            data += f" Finetuning: {Path(run.instructions).name}."
        base_id = [] if Path(run.source).exists() else ["--base", run.source]
        words = ["push", pair, run.repo, "--licence", run.licence, *base_id, "--data", data]
        found.append(Stage("push", words, work / _result_file("push", run.repo), captured=True))
    if run.space:
        words = ["space", "deploy", "--repo", run.space, "--profile", run.profile, "--model", run.repo]
        found.append(Stage("space", words, work / _result_file("space", run.space), captured=True))
    return found


def _result_file(stage: str, repo_id: str) -> str:
    """Of a stage's result for one repository: it is still to do for another one."""
    return f"{stage}--{repo_id.replace('/', '--')}.json"


def fetch_base(name: str, target: Path, chat: bool) -> None:
    """A stock model's files and tokenizer as a folder of its own; with `chat` it gets our template.

    Raises ValueError for a base of no supported family, or one that has no room for the template's tokens.
    """
    source = loading.resolve(name)
    check_format(name, [file.name for file in source.iterdir()])
    architecture_of_type(loading.model_type(source), f"base: {name}")
    part = target.with_name(target.name + ".partial")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for pattern in ("config.json", "generation_config.json", "*.safetensors", "*.index.json"):
        for file in source.glob(pattern):
            shutil.copyfile(file, part / file.name)
    tokenizer = loading.load_tokenizer(source)
    if chat and not text.has_chat_template(tokenizer):
        print(f"base: {text.MARKERS_ADDED}", file=sys.stderr)
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
    """Write what the card is made from."""
    report: dict[str, Any] = {
        "perplexity": json.loads(losses.read_text(encoding="utf-8")),
        "sweep": json.loads(speed.read_text(encoding="utf-8")),
        "commands": commands_of(found, pair.parent, leave_out=("push", "space")),
    }
    report["perplexity"]["model"] = report["sweep"]["model"] = "this pair"
    write_json(pair / REPORT_FILE, report)
