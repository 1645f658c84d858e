"""How the embedded pair is made: stages that run in order, each once.

A base model learns the dialogues for a while at a constant learning rate (`start`); from there DynaMo goes on
by the modified objective and the base by plain causal-LM training, for the same steps on the same data, so
that heads are compared and not training time. Then the table is counted, both are measured, and the pair is
written in float16 with its cards. A stage whose result exists is skipped, a killed stage resumes.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from dynamo.common.files import write_json
from dynamo.data.prompts import PROMPTS_FILE
from dynamo.loading import TABLE_FILE
from dynamo.pipelines.stages import RunCommand, Stage, run_stages
from dynamo.training.options import TrainingOptions, TrainingRun

SHAPE = "8x256x4"
VOCAB_SIZE = 4096
START_STEPS, JOINT_STEPS = 1400, 1000
SCHEDULE = TrainingOptions(
    batch_size=8, base_lr=2e-3, head_lr=2e-3, weight_decay=0.1, mixed_precision="bf16", checkpoint_every=100
)


def stages(data: Path, work: Path) -> list[Stage]:
    """The trainings and the count that make the pair, in order."""
    dialogues, dev = str(data / "dialogues_train.jsonl.gz"), str(data / "dialogues_dev.jsonl.gz")
    tokenizer, table = str(work / "tokenizer"), work / TABLE_FILE

    def training(name: str, options: TrainingOptions, **values: Any) -> Stage:
        run = TrainingRun((dialogues,), work / name, validation=dev, options=options, **values)
        return Stage(name, run, work / name / "model" / "config.json")

    first = replace(SCHEDULE, steps=START_STEPS, warmup=0.05, final_lr=1.0, evaluate_every=350)
    further = replace(SCHEDULE, steps=JOINT_STEPS, warmup=0.02, evaluate_every=250, seed=1)
    start = str(work / "start" / "model")
    return [
        training("start", first, new=SHAPE, tokenizer=tokenizer, heads=1),
        training("dynamo", further, model=start, heads=3, head_init="copy"),
        training("base", further, model=start, heads=1),
        Stage("table", ["count", "--tokenizer", tokenizer, "--data", dialogues, "--order", "3",
                        "--output", str(table)], table),
    ]  # fmt: skip


def make(data: Path, work: Path, output: Path, run_command: RunCommand) -> dict[str, Any]:
    """Run every stage that is not done, then export to `output`; `run_command` is as for `run_stages`.

    Raises ValueError if the data is not there or a stage fails.
    """
    for split in ("train", "dev"):
        if not (data / f"dialogues_{split}.jsonl.gz").is_file():
            raise ValueError(
                f"data: {data} holds no dialogues_{split}.jsonl.gz; prepare it from the public data set "
                f"with: python -m dynamo.data.schema_guided prepare dstc8-schema-guided-dialogue {data}"
            )
    _tokenizer(data, work)
    run_stages(stages(data, work), run_command)
    return export(data, work, output)


def _tokenizer(data: Path, work: Path) -> None:
    from dynamo.data.schema_guided import train_tokenizer
    from dynamo.data.sources import read_conversations

    if not (work / "tokenizer" / "tokenizer.json").exists():
        dialogues = read_conversations(data / "dialogues_train.jsonl.gz")
        train_tokenizer(dialogues, VOCAB_SIZE, max_length=1024).save_pretrained(work / "tokenizer")


def export(data: Path, work: Path, output: Path) -> dict[str, Any]:
    """Write the pair in float16, measure what was written, and put the numbers into its cards."""
    from dynamo import loading
    from dynamo.training.trainer import save_model

    for part in ("base", "dynamo"):
        model, tokenizer, _ = loading.load_model(str(work / part / "model"), device="cpu")
        # Only for the file: the half copy's rotary buffers are not saved.
        save_model(copy.deepcopy(model).half(), tokenizer, output / part)
    table = output / "dynamo" / TABLE_FILE
    table.write_bytes((work / TABLE_FILE).read_bytes())
    report = measure_pair(str(output), data / "dialogues_dev.jsonl.gz")
    report["commands"] = [stage.command() for stage in stages(Path("DATA"), Path("runs"))]
    write_json(output / "report.json", report)
    for part in ("base", "dynamo"):
        (output / part / "README.md").write_text(card(part, report), encoding="utf-8")
    return report


def measure_pair(name: str, dev: Path) -> dict[str, Any]:
    """Losses on the development dialogues, and replies to the fixed prompts at several thresholds."""
    from dynamo import loading
    from dynamo.data import text
    from dynamo.data.documents import read_documents, text_bytes_per_token
    from dynamo.decoding.engine import Engine
    from dynamo.evaluation import perplexity, replies
    from dynamo.model import DynamoForCausalLM
    from dynamo.sampling.options import SamplingOptions

    pair = loading.load(name, device="cpu")
    dialogues = read_documents(dev, pair.tokenizer)
    sizes = text_bytes_per_token(pair.tokenizer)
    prompts = [text.encode_chat(pair.tokenizer, chat) for chat in json.loads(PROMPTS_FILE.read_text())]
    base = DynamoForCausalLM.from_base(pair.base, num_token_heads=1)
    report: dict[str, Any] = {
        "development": {
            "base": perplexity.measure_perplexity(base, dialogues, sizes).summary(),
            "dynamo": perplexity.measure_perplexity(pair.dynamo, dialogues, sizes).summary(),
        },
        "parameters": {"base": pair.base.num_parameters(), "dynamo": pair.dynamo.num_parameters()},
        "replies": {},
    }
    lane = Engine(pair.base, None, pair.tokenizer)
    report["replies"]["base"] = replies.audited_replies(lane, prompts, SamplingOptions(), pair.base).summary()
    dynamo = Engine(pair.dynamo, pair.table, pair.tokenizer)
    for threshold in (1.0, 0.9, 0.7, 0.5, 0.3, 0.0):
        measured = replies.audited_replies(dynamo, prompts, SamplingOptions(threshold=threshold), pair.base)
        report["replies"][f"dynamo at {threshold}"] = measured.summary()
        if threshold == SamplingOptions().threshold:
            report["samples"] = [
                [
                    json.loads(PROMPTS_FILE.read_text())[i][-1]["content"],
                    text.decode(pair.tokenizer, measured.runs[i].tokens),
                ]
                for i in (0, 6, 11, 13, 30)
            ]
    return report


CARD = """---
license: cc-by-sa-4.0
language: en
library_name: transformers
tags: [dynamo, multi-token-prediction, gpt_neox]
---
# {title}

{what}

Not a Pythia checkpoint: it has Pythia's architecture (GPT-NeoX, {shape}, vocabulary {vocab}), but was trained
from scratch by this project, for its demo. It knows the domains of its corpus (restaurants, hotels, flights,
films, music, weather, banking, calendars, rides and the like), in English, invents every fact, and is good
for nothing else.

**Data.** The Schema-Guided Dialogue data set by Google Research (Rastogi et al., 2020), CC BY-SA 4.0; about
three quarters of its train and dev dialogues. These weights are shared under the same licence. Two thirds of
the development dialogues use a service that training never saw.

**Measured** on the development split, each dialogue alone from its first token, cut at 512 tokens, all tokens
counted, only the text's UTF-8 bytes divided by: {losses}

{replies}

**Heads.** The extra heads started as copies of the base's last layer (the paper's suite starts them at
random).

**Recipe.** `make models`, which runs, after training the tokenizer on the training split:

```
{commands}
```

**Sample** at the default threshold:

{samples}
"""

WHAT = {
    "base": "The base model of DynaMo's embedded pair: one token per forward pass. It got the same further "
    "training as its DynaMo sibling, by plain causal-LM training.",
    "dynamo": "The DynaMo model of the embedded pair: three token heads, so one forward pass proposes up to "
    "three tokens (arXiv 2405.00888). `cooccurrence.safetensors` is its co-occurrence table, counted on the "
    "training split.",
}


def card(part: str, report: dict[str, Any]) -> str:
    """The model card of one part of the pair, from the report alone."""
    measured = report["development"][part]
    losses = (
        f"{measured['bits_per_byte']:.3f} bits per byte with the first head; nats per token by head: "
        + ", ".join(f"{nats:.3f}" for nats in measured["mean_nats"])
        + "."
    )
    replies = ""
    if part == "dynamo":
        rows = [
            f"| {name.removeprefix('dynamo at ')} | {r['tokens_per_forward']:.2f} | "
            + " / ".join(f"{100 * r['share_by_order'].get(str(m), 0):.0f}" for m in (1, 2, 3))
            + f" | {r['nats_per_token_under_base']:.2f} | {100 * r['share_below_1_percent']:.1f} % |"
            for name, r in report["replies"].items()
            if name != "base"
        ]
        header = (
            "One reply to each of the 40 prompts of `assets/prompts.json`, other options at their defaults; "
            "`assets/sweep.json` has three to each, with intervals. Low nats are no praise by themselves: "
            "thresholds cut the tail.\n\n"
            "| threshold | tokens per forward pass | passes of 1 / 2 / 3 tokens, % | "
            "nats per token under the base | tokens below 1 % under the base |\n"
            "|---|---|---|---|---|\n"
        )
        replies = header + "\n".join(rows)
    return CARD.format(
        title="DynaMo, embedded pair: " + part,
        what=WHAT[part],
        shape=f"{SHAPE.split('x')[0]} layers of {SHAPE.split('x')[1]}",
        vocab=VOCAB_SIZE,
        losses=losses,
        replies=replies,
        commands="\n".join(report["commands"]),
        samples="\n".join(f"- *{prompt}* → {reply.strip()}" for prompt, reply in report["samples"]),
    )
