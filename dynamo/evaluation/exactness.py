"""Does exact mode speak as the first head does? Its second and third tokens against that distribution.

Given the prompt and a first token, the second one of exact mode must have the first head's distribution, and
given two, the third; where only heads were trained that is the base's. Whole streams are drawn, seed by seed,
by the lane that the engine runs; those that begin otherwise are left out. What the model says at a place does
not depend on the draw, so it is asked once for each of the three places that count, and a prompt costs three
passes however many draws there are. The expected distribution is worked out here, from the stock model's
logits.

`python -m dynamo.evaluation.exactness --model smollm2` runs it on everyday prompts and prints p-values.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from dynamo.decoding.engine import Engine
from dynamo.loading import Pair
from dynamo.sampling.options import SamplingOptions

LIMIT = 4  # tokens of a stream: two drafts are made behind the first
LEAST_EXPECTED = 5.0  # rarer tokens are counted as one
MOST_TRIED = 50  # streams for each draw, where hardly one begins as it is to


@dataclass(frozen=True)
class Fit:
    """How well one place's draws fit. place: 2 or 3; drafted: share of the draws that were drafts."""

    place: int
    draws: int
    drafted: float
    p_value: float


def fits(pair: Pair, prompt: list[int], draws: int) -> list[Fit]:
    """Of the second and third token after a prompt, `draws` streams that begin with the likeliest token and,
    for the third, those of them that go on with the likeliest.

    Raises ValueError where the pair has one head.
    """
    options = replace(pair.options, exact=True)
    if min(pair.dynamo.config.num_token_heads, options.max_order) < 2:
        raise ValueError("heads: exact mode drafts nothing with one")
    engine = Engine(pair.dynamo, pair.table, pair.tokenizer)
    stock = pair.dynamo.to_base(shared=True).eval()
    beginning: list[int] = []
    expected: list[dict[int, float]] = []
    for _ in range(3):  # the first is only begun with
        expected.append(first_head(stock, engine, [*prompt, *beginning], options))
        beginning.append(max(expected[-1], key=expected[-1].__getitem__))
    first, second = beginning[:2]
    places = _places(engine, prompt, beginning[:2])
    seconds: Counter[int] = Counter()
    thirds: Counter[int] = Counter()
    drafts = [0, 0]
    for tokens, kept in _streams(engine, prompt, options, places, first, second, draws):
        seconds[tokens[1]] += 1
        drafts[0] += kept[1]
        if tokens[1] == second and len(tokens) > 2:
            thirds[tokens[2]] += 1
            drafts[1] += kept[2]
    counted = zip((2, 3), (seconds, thirds), expected[1:], drafts, strict=True)
    return [
        Fit(place, counts.total(), share / max(1, counts.total()), p_value(counts, wanted))
        for place, counts, wanted, share in counted
    ]


def first_head(
    stock: PreTrainedModel, engine: Engine, ids: list[int], options: SamplingOptions
) -> dict[int, float]:
    """What the first head draws the next token from: top-k, temperature, penalty on what is there already."""
    with torch.inference_mode():
        logits = stock(torch.tensor([ids], device=stock.device)).logits[0, -1].double().cpu()
    best = logits.topk(min(options.top_k, len(logits)))
    weights = torch.softmax(best.values / options.temperature, 0).numpy()
    repeats = np.isin(best.indices.numpy(), list(set(ids) - engine._special_ids))
    weights = weights / np.where(repeats, options.repetition_penalty, 1.0)
    return dict(zip(best.indices.tolist(), (weights / weights.sum()).tolist(), strict=True))


def p_value(counts: Mapping[int, int], expected: Mapping[int, float]) -> float:
    """Of Pearson's test; 0 where something was drawn that cannot be."""
    draws = sum(counts.values())
    if any(token not in expected for token in counts):
        return 0.0
    common = [token for token, p in expected.items() if p * draws >= LEAST_EXPECTED]
    observed = [counts.get(token, 0) for token in common]
    wanted = [expected[token] * draws for token in common]
    rest = draws - sum(wanted)
    if rest >= LEAST_EXPECTED:
        observed.append(draws - sum(observed))
        wanted.append(rest)
    else:  # too few to be a bin
        wanted = [each * sum(observed) / sum(wanted) for each in wanted]
    distance = sum((seen - each) ** 2 / each for seen, each in zip(observed, wanted, strict=True))
    half_freedom = torch.tensor((len(observed) - 1) / 2, dtype=torch.float64)
    beyond = torch.special.gammaincc(half_freedom, torch.tensor(distance / 2, dtype=torch.float64))
    return float(beyond) if len(observed) > 1 else 1.0


# ---- streams without passes


Said = tuple[Tensor, Tensor]  # logits (heads, vocab) and hidden states (heads, hidden)


def _places(engine: Engine, prompt: list[int], tokens: list[int]) -> dict[tuple[int, ...], Said]:
    """What the engine's decoder says after the prompt, and behind each of the tokens."""
    decoder = engine._decoder
    said = {}
    with engine._pool.lease(len(prompt) + LIMIT) as cache:
        for count in range(len(tokens) + 1):
            states = decoder.read(cache, prompt if count == 0 else tokens[count - 1 : count], engine.heads, 1)
            logits = decoder.by_position(states)[0]
            said[tuple(tokens[:count])] = logits.clone(), states[:, 0].clone()
    return said


def _remembered(places: dict[tuple[int, ...], Said], before: list[int], pending: list[int]) -> Said:
    """A pass's logits (queries, heads, vocab) and hidden states (heads, queries, hidden), anything for places
    that do not count."""
    asked = [(*before, *pending[:count]) for count in range(1 + len(pending))]
    logits, states = zip(*(places.get(place, places[()]) for place in asked), strict=True)
    return torch.stack(logits), torch.stack(states, dim=1)


def _streams(
    engine: Engine,
    prompt: list[int],
    options: SamplingOptions,
    places: dict[tuple[int, ...], Said],
    first: int,
    second: int,
    draws: int,
) -> Iterator[tuple[list[int], list[bool]]]:
    """`draws` streams that begin with `first`, up to their second token, or third after `second`: tokens, and
    which were drafts."""
    found = 0
    for seed in range(MOST_TRIED * draws):
        if found == draws:
            return
        sequence = engine._sequence(prompt, options, LIMIT, seed, ())
        tokens: list[int] = []
        kept: list[bool] = []
        while sequence.pending and len(tokens) < (3 if tokens[1:2] == [second] else 2):
            drafts = sequence.pending[1:] if tokens else []
            logits, states = _remembered(places, tokens, drafts)
            record = sequence.advance(logits, lambda: 0.0, states)
            accepted = len(drafts) - sequence.rejected
            tokens += record.tokens
            kept += [index < accepted for index in range(len(record.tokens))]
            if tokens[0] != first:
                break
        if tokens[0] == first and len(tokens) > 1:
            found += 1
            yield tokens, kept
    raise ValueError(f"draws: only {found} of {MOST_TRIED * draws} streams began with the likeliest token")


def main(arguments: list[str] | None = None) -> int:
    from dynamo import loading
    from dynamo.data.prompts import EVERYDAY_FILE, read_prompts

    parser = argparse.ArgumentParser(prog="python -m dynamo.evaluation.exactness", description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a pair: name, folder or hub id")
    parser.add_argument("--prompts", type=Path, default=EVERYDAY_FILE, help="of the commands' kind")
    parser.add_argument("--limit", type=int, default=10, help="only the first prompts (default: 10)")
    parser.add_argument("--draws", type=int, default=20_000, help="streams of each (default: 20,000)")
    asked = parser.parse_args(arguments)
    pair = loading.load(asked.model)
    found = []
    for number, prompt in enumerate(read_prompts(asked.prompts, pair.tokenizer, asked.limit), 1):
        for fit in fits(pair, prompt, asked.draws):
            found.append(fit)
            print(
                f"prompt {number:2}, token {fit.place}: p = {fit.p_value:.4f}, {fit.draws:,} draws, "
                f"{100 * fit.drafted:.0f} % drafts",
                file=sys.stderr,
                flush=True,
            )
    values = sorted(fit.p_value for fit in found)
    result = {"model": asked.model, "draws": asked.draws, "tests": len(values), "p_values": values}
    # The smallest of n p-values is below a / n with probability a.
    passed = values[0] > 0.01 / len(values)
    print(json.dumps({**result, "passed": passed}))
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
