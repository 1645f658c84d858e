"""The model card of a checkpoint: what it is, what it was made from and how, and what was measured.

A card says only what is known: the shape comes from the configuration, the table from its file, losses and
speed from `report.json` if the folder has one, base, data and licence from whoever pushes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.loading import TABLE_FILE, model_folders, model_type
from dynamo.model import DynamoConfig, architecture_of, extra_parameter_share

REPORT_FILE = "report.json"


@dataclass(frozen=True)
class Origin:
    """What a folder does not record about its model.

    licence: as the hub abbreviates it (apache-2.0, cc-by-4.0 ..); base: hub id of the model that it was made
    from, "" for none; data: what it was trained on, in words; language: two letters, "" if unknown.
    """

    licence: str
    base: str = ""
    data: str = ""
    language: str = "en"

    def __post_init__(self):
        if not self.licence.strip():
            raise ValueError("licence: name the licence of the weights, such as apache-2.0")


def card(folder: Path, repo_id: str, origin: Origin, report: dict[str, Any] | None = None) -> str:
    """The README of a model folder, a pair or heads alone. report: the folder's own by default.

    Raises ValueError for a folder without a DynaMo model.
    """
    folders = model_folders(folder)
    dynamo = folders.get("dynamo", folder)
    if model_type(dynamo) != DynamoConfig.model_type:
        raise ValueError(f"model: {folder} holds no DynaMo model (no token heads); push those")
    config = DynamoConfig.from_pretrained(dynamo)
    report = read_report(folder) if report is None else report
    parts = [
        f"# {repo_id.split('/')[-1]}",
        _what(config, origin, pair="base" in folders),
        _use(repo_id),
        _from_transformers(repo_id, config, pair="base" in folders),
        _table(dynamo / TABLE_FILE),
        f"**Data.** {origin.data}" if origin.data else "",
        _losses(report.get("perplexity")),
        _heads(report.get("heads")),
        _exact(report.get("exact")),
        _speed(report.get("sweep")),
        _recipe(report.get("commands")),
    ]
    return f"---\n{_metadata(origin, config).to_yaml()}\n---\n" + "\n\n".join(filter(None, parts)) + "\n"


def read_report(folder: Path) -> dict[str, Any]:
    """A folder's `report.json`, {} if it has none. Raises ValueError if it is not a JSON object."""
    path = folder / REPORT_FILE
    if not path.is_file():
        return {}
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); repair it or delete it") from None
    if not isinstance(report, dict):
        raise ValueError(f"{path}: expected an object, got {type(report).__name__}")
    return report


def _metadata(origin: Origin, config: DynamoConfig) -> ModelCardData:
    return ModelCardData(
        license=origin.licence,
        library_name="transformers",
        language=origin.language or None,
        base_model=origin.base if origin.base.count("/") == 1 else None,
        pipeline_tag="text-generation",
        tags=["dynamo", "multi-token-prediction", config.text_config.model_type],
    )


def _what(config: DynamoConfig, origin: Origin, pair: bool) -> str:
    made_from = f", made from {origin.base}" if origin.base else ""
    if config.heads_only:
        made_from = (
            f", as the token heads alone: its base is {origin.base}, which is fetched when it is loaded"
        )
    text = (
        f"A DynaMo model{made_from}: a {architecture_of(config).name} model "
        f"({config.num_hidden_layers} layers of {config.hidden_size}) with {config.num_token_heads} token "
        f"heads, so that one forward pass proposes up to {config.num_token_heads} tokens "
        f"(arXiv 2405.00888). The extra heads have {100 * extra_parameter_share(config):.2f} % more "
        "parameters. Sampling several tokens at once is "
        "lossy: the text can differ from the base model's."
    )
    return text + (" `base/` holds the one-token model to compare it with." if pair else "")


def _use(repo_id: str) -> str:
    return (
        "```python\n"
        "from dynamo import Engine, load\n"
        "from dynamo.data.text import IncrementalDecoder, encode_prompt\n\n"
        f'pair = load("{repo_id}")  # also quantize="8bit" or "4bit"\n'
        'prompt, decoder = encode_prompt(pair.tokenizer, "Hello"), IncrementalDecoder(pair.tokenizer)\n'
        "for step in Engine(pair.dynamo, pair.table, pair.tokenizer).stream(prompt):\n"
        "    print(decoder.push(step.tokens))\n"
        "```"
    )


def _from_transformers(repo_id: str, config: DynamoConfig, pair: bool) -> str:
    if config.heads_only:
        return (
            f'`DynamoForCausalLM.from_heads("{repo_id}")` gives the model alone; a base that is loaded '
            "already goes in as `base=`. Another model than the heads' own base is refused."
        )
    if pair:
        return ""
    return (
        "transformers loads it too, with its first head for `generate`:\n\n"
        "```python\n"
        "import dynamo  # or trust_remote_code=True below, which imports the installed package\n"
        "from transformers import AutoModelForCausalLM\n\n"
        f'model = AutoModelForCausalLM.from_pretrained("{repo_id}")\n'
        "```"
    )


def _table(path: Path) -> str:
    if not path.is_file():
        return "It has no co-occurrence table: its joint is not masked."
    table = CooccurrenceTable.load(path)
    source = f" of {table.source}" if table.source else ""
    return (
        f"`{TABLE_FILE}` is its co-occurrence table: tuples of up to {table.order} tokens{source}, "
        f"{table.total_tokens:,} tokens counted."
    )


def _losses(measured: dict[str, Any] | None) -> str:
    if not measured:
        return ""
    rows = [
        f"| {head} | {nats:.3f} | {ppl:.2f} |"
        for head, (nats, ppl) in enumerate(zip(measured["mean_nats"], measured["ppl"], strict=True), 1)
    ]
    return (
        f"**Losses** on {measured['documents']:,} held-out documents, each alone from its first token, cut "
        f"at {measured['cut']} tokens ({measured['bits_per_byte']:.3f} bits per byte of head 1):\n\n"
        "| head | nats per token | perplexity |\n|---|---|---|\n" + "\n".join(rows)
    )


def _heads(measured: dict[str, Any] | None) -> str:
    """What `HeadTrainer` measured last."""
    if not measured:
        return ""
    rows = []
    for kind, words in (("heads", "alone"), ("correlator", "given the tokens before")):
        for number, each in enumerate(measured.get(kind) or (), 2):
            figures = f"{each['nats']:.3f} | {100 * each['top1']:.1f} % | {each['overlap']:.3f}"
            rows.append(f"| head {number}, {words} | {figures} |")
    return (
        f"**Heads** on held-out conversations of its own, {max(measured['positions']):,} positions, answer "
        f"tokens only, where the first head has {measured['first_nats']:.3f} nats. Overlap: the share of the "
        "base's sampling distribution that a head covers.\n\n"
        "| | nats | likeliest token right | overlap |\n|---|---|---|---|\n" + "\n".join(rows)
    )


def _exact(counts: dict[str, int] | None) -> str:
    if not counts:
        return ""
    return f"**Exact mode**: {counts['tokens'] / max(1, counts['passes']):.2f} tokens per forward pass."


def _speed(sweep: dict[str, Any] | None) -> str:
    if not sweep:
        return ""
    orders = sorted({m for point in sweep["points"] for m in point["share_by_order"]})
    rows = []
    for point in sweep["points"]:
        shares = " / ".join(f"{100 * point['share_by_order'].get(m, 0):.0f}" for m in orders)
        per_pass, speed = (_interval(point[name]) for name in ("tokens_per_forward", "speed_up"))
        rows.append(f"| {point['threshold']:g} | {per_pass} | {shares} | {speed} |")
    machine = sweep["machine"]
    return (
        f"**Speed** over the base's own loop, {sweep['prompts']} prompts, {sweep['seeds']} replies each, 95 "
        f"% intervals over prompts ({machine['device']}, {machine['threads']} threads, {machine['dtype']}, "
        f"torch {machine['torch']}, {machine['date']}):\n\n"
        f"| threshold | tokens per forward pass | passes of {' / '.join(orders)} tokens, % | speed-up |\n"
        "|---|---|---|---|\n" + "\n".join(rows)
    )


def _interval(estimate: dict[str, float]) -> str:
    return f"{estimate['value']:.2f} ({estimate['low']:.2f} to {estimate['high']:.2f})"


def _recipe(commands: list[str] | None) -> str:
    return "**Recipe.**\n\n```\n" + "\n".join(commands) + "\n```" if commands else ""
