"""Score a text under the base model, token by token: probability, rank, and whether the base would have
sampled it at all.

The text comes from traces (`compare --trace`, the page's download) or from --reply, or DynaMo writes it now.
Low nats alone are not a sign of quality: thresholds cut the tail.

With --data, instead: replies in the middle of held-out dialogues at several thresholds, compared with the
true turns (chrF) and with their context (the share of numbers and names that it has), each next to threshold
1.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamo.commands.generate import add_generation_arguments, sampling_options
from dynamo.data.reading import Reading
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.recorder import RunCounts

NOTABLE = 12
THRESHOLDS = (0.9, 0.7, 0.5, 0.3, 0.0)


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("traces", nargs="*", type=Path, metavar="TRACE", help="NDJSON files of runs")
    parser.add_argument("--prompt", help="instead of traces: the prompt of the reply")
    parser.add_argument("--reply", help="the text to score (default: DynaMo replies to --prompt)")
    parser.add_argument("--data", nargs="+", help="instead of traces: conversations, as `train` takes them")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS, metavar="EPS",
                        help="of --data: thresholds besides 1 (default: 0.9 0.7 0.5 0.3 0)")  # fmt: skip
    parser.add_argument("--limit", type=int, default=100,
                        help="of --data: dialogues, one place each, 0 for all (default: 100)")  # fmt: skip
    parser.add_argument(
        "--model", default="embedded", help="a pair, or a base to judge by (default: embedded)"
    )
    parser.add_argument("--device", help="cpu, cuda (default: cuda if there is one)")
    add_generation_arguments(parser)


@dataclass(frozen=True)
class Text:
    """A reply to score: the ids before it and its own."""

    lane: str
    prompt: str
    prompt_ids: list[int]
    ids: list[int]


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.data.text import TokenLabels, decode
    from dynamo.evaluation.audit import audit

    sources = (arguments.traces, arguments.prompt is not None, arguments.data)
    if sum(map(bool, sources)) != 1:
        raise ValueError("traces: give either trace files or --prompt or --data")
    if arguments.reply is not None and arguments.prompt is None:
        raise ValueError("reply: it needs the --prompt that it answers")
    options = sampling_options(arguments, SamplingOptions())
    if arguments.data:
        return _against_true_turns(arguments, options)
    base, tokenizer, pair = _judge(arguments.model, arguments.device)
    labels = TokenLabels(tokenizer)
    if arguments.traces:
        texts = [text for path in arguments.traces for text in _from_trace(path, tokenizer)]
    else:
        texts = [_from_prompt(arguments, tokenizer, pair)]
    results = []
    for text in texts:
        opinion = audit(base, text.prompt_ids, text.ids, options.top_k)
        pieces = list(map(labels, text.ids))
        print(f"{text.lane}: {decode(tokenizer, text.ids)}", file=sys.stderr)
        _print(pieces, opinion)
        results.append(
            {"lane": text.lane, "prompt": text.prompt, "pieces": pieces, "ids": text.ids, **opinion.to_json()}
        )
    return {"model": arguments.model, "texts": results}


def _against_true_turns(arguments: argparse.Namespace, options: SamplingOptions) -> dict[str, Any]:
    from tqdm import tqdm

    from dynamo import loading
    from dynamo.data.sources import read_conversations
    from dynamo.decoding.engine import Engine
    from dynamo.evaluation import next_turns

    if arguments.limit < 0:
        raise ValueError(f"limit: expected 0 (all) or more dialogues, got {arguments.limit}")
    reading = Reading()
    conversations = list(read_conversations(arguments.data, reading))
    reading.say("data")
    model, tokenizer, table = loading.load_model(arguments.model, device=arguments.device)
    places = next_turns.places(conversations, arguments.limit or len(conversations), arguments.seed)
    lanes = len({*arguments.thresholds, 1.0})
    with tqdm(total=lanes * len(places), unit="reply", leave=False, disable=None) as bar:
        rows = next_turns.answer_places(
            Engine(model, table, tokenizer), tokenizer, places, arguments.thresholds, options,
            arguments.max_new_tokens, arguments.seed, bar.update,
        )  # fmt: skip
    for row in rows:
        label = "true turns" if row.threshold is None else f"threshold {row.threshold:g}"
        measures = "  ".join(
            f"{name} {each.value:.3g} ({each.low:.3g}-{each.high:.3g})" for name, each in row.measures.items()
        )
        print(f"{label:14} {measures}", file=sys.stderr)
    return {"model": arguments.model, "places": len(places), "replies": [row.to_json() for row in rows]}


def _judge(name: str, device: str | None) -> tuple[Any, Any, Any]:
    """The base model that judges, its tokenizer, and its pair (None for a stock model)."""
    from dynamo import loading
    from dynamo.model import DynamoConfig

    folder = loading.resolve(name)
    if (folder / "dynamo").is_dir() or loading.model_type(folder) == DynamoConfig.model_type:
        pair = loading.load(name, device=device)
        return pair.base, pair.tokenizer, pair
    base, tokenizer, _ = loading.load_model(name, device=device)
    return base, tokenizer, None


def _from_trace(path: Path, tokenizer: Any) -> list[Text]:
    """Every run of a file; runs of one lane are the turns of one chat."""
    from dynamo.trace.ndjson import read_runs

    try:
        with path.open(encoding="utf-8") as lines:
            runs = read_runs(lines)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    chats: dict[str, list[dict[str, str]]] = defaultdict(list)
    texts = []
    for each in runs:
        header, turns = each.header, chats[each.header.lane]
        turns.append({"role": "user", "content": header.prompt})
        texts.append(Text(header.lane, header.prompt, _encode(tokenizer, turns), each.tokens))
        turns.append({"role": "assistant", "content": each.text})
    return texts


def _from_prompt(arguments: argparse.Namespace, tokenizer: Any, pair: Any) -> Text:
    from dynamo.data.text import encode_plain, encode_prompt
    from dynamo.decoding.engine import Engine

    prompt_ids = encode_prompt(tokenizer, arguments.prompt)
    if arguments.reply is not None:
        return Text("reply", arguments.prompt, prompt_ids, encode_plain(tokenizer, [arguments.reply])[0])
    if pair is None:
        raise ValueError(f"reply: {arguments.model} has no token heads to write one; give --reply or a pair")
    options = sampling_options(arguments, pair.options)
    steps = Engine(pair.dynamo, pair.table, tokenizer).stream(
        prompt_ids, options, arguments.max_new_tokens, arguments.seed, arguments.stop
    )
    return Text("dynamo", arguments.prompt, prompt_ids, RunCounts.fold(steps).tokens)


def _encode(tokenizer: Any, turns: list[dict[str, str]]) -> list[int]:
    from dynamo.data.text import encode_chat, encode_prompt, has_chat_template

    if has_chat_template(tokenizer):
        return encode_chat(tokenizer, turns)
    return encode_prompt(tokenizer, turns[-1]["content"])


def _print(pieces: list[str], opinion: Any) -> None:
    """Prints a text's figures, and the tokens that the base would hardly have written, unlikeliest first."""
    print(
        f"  {len(pieces)} tokens, {opinion.nats_per_token:.2f} nats a token under the base, "
        f"{100 * opinion.unlikely_share:.1f} % of them below 1 %, "
        f"{100 * opinion.outside_share:.1f} % outside its top {opinion.top_k}, "
        f"{100 * opinion.repetition:.1f} % of the 4-grams repeated",
        file=sys.stderr,
    )
    notable = [i for i in range(len(pieces)) if opinion.unlikely[i] or opinion.outside[i]]
    p = opinion.to_json()["p"]
    for i in sorted(notable, key=lambda i: p[i])[:NOTABLE]:
        print(f"  {100 * p[i]:9.4f} %  rank {opinion.ranks[i] + 1:<6} {pieces[i]!r}", file=sys.stderr)
