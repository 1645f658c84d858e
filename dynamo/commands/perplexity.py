"""Measure the perplexity of every head on held-out conversations, each read alone from its first token.

With --thresholds also PPL_d: that of the tokens that the sampler would emit at a back-off threshold; with
--weights, what copies in fewer bits change. All have 95 % intervals over documents.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

from dynamo.common.options import add_arguments, from_arguments
from dynamo.data.reading import DATA_HELP, STRICT_HELP, Reading
from dynamo.model.architectures import max_positions
from dynamo.sampling.options import SamplingOptions


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="embedded", help="embedded, embedded/base, folder, GGUF file or hub id"
    )
    parser.add_argument("--data", required=True, nargs="+", help=DATA_HELP)
    parser.add_argument("--strict", action="store_true", help=STRICT_HELP)
    parser.add_argument(
        "--cut", type=int, default=512, help="most tokens read of a conversation (default: 512)"
    )
    parser.add_argument("--limit", type=int, default=0, help="read only the first conversations, 0 for all")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[], metavar="EPS",
                        help="adds PPL_d at these back-off thresholds, 0 to 1")  # fmt: skip
    parser.add_argument("--positions", type=int, default=4000,
                        help="places at which PPL_d is measured (default: 4000)")  # fmt: skip
    parser.add_argument("--weights", nargs="+", choices=("int8", "int4"), default=[],
                        help="adds the divergence of copies in 8 or 4 bits, and what they lose")  # fmt: skip
    add_arguments(
        parser, SamplingOptions, leave_out=("threshold", "exact", "exact_threshold", "exact_vocabulary")
    )


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import loading
    from dynamo.data.documents import read_documents, text_bytes_per_token
    from dynamo.data.text import special_ids
    from dynamo.evaluation import perplexity
    from dynamo.evaluation.few_bits import measure_few_bits
    from dynamo.model import DynamoForCausalLM

    if arguments.limit < 0:
        raise ValueError(f"limit: expected 0 (all) or more conversations, got {arguments.limit}")
    if arguments.positions < 1:
        raise ValueError(f"positions: expected 1 or more, got {arguments.positions}")
    options = from_arguments(SamplingOptions, arguments)
    model, tokenizer, table = loading.load_model(arguments.model)
    if not isinstance(model, DynamoForCausalLM):
        model = DynamoForCausalLM.from_base(model, num_token_heads=1)
    positions = max_positions(model)
    if not model.config.num_token_heads < arguments.cut <= positions:
        raise ValueError(
            f"cut: expected {model.config.num_token_heads + 1} (a target for every head) to {positions} "
            f"(the model's positions) tokens, got {arguments.cut}"
        )
    reading = Reading(arguments.strict)
    documents = read_documents(arguments.data, tokenizer, reading)
    reading.say("data")
    documents = documents[: arguments.limit or None]
    result = perplexity.measure_perplexity(model, documents, text_bytes_per_token(tokenizer), arguments.cut)
    for head, nats in enumerate(result.mean_nats, start=1):
        names = [f"PPL_{head}", *([f"PPL_1:{head}"] if head > 1 else [])]
        shown = "  ".join(f"{name} {_shown(result.intervals[name])}" for name in names)
        print(f"head {head}: {nats:.4f} nats  {shown}", file=sys.stderr)
    print(f"bits per byte of text (head 1): {result.bits_per_byte:.4f}", file=sys.stderr)
    points = []
    if arguments.thresholds:
        points = perplexity.measure_dynamic_perplexity(
            model, table, documents, arguments.thresholds, options, arguments.positions, cut=arguments.cut,
            special_ids=special_ids(tokenizer),
        )  # fmt: skip
    for point in points:
        shares = " / ".join(f"{m}: {100 * share:.0f} %" for m, share in point.share_by_order.items())
        print(
            f"threshold {point.threshold:g}: PPL_d {_shown(point.ppl)}  "
            f"{point.tokens_per_place.value:.2f} tokens a place ({shares})",
            file=sys.stderr,
        )
    few = [
        each for bits in arguments.weights for each in measure_few_bits(model, documents, bits, arguments.cut)
    ]
    for each in few:
        rise = 100 * each.rise.value
        print(
            f"{each.weights}, head {each.head}: KL {each.divergence.value:.4f} nats, loss {rise:+.2f} %",
            file=sys.stderr,
        )
    measured = {"model": arguments.model, "documents": len(documents), "cut": arguments.cut}
    measured["reading"] = reading.to_json()
    measured["few_bits"] = [each.to_json() for each in few]
    return {**measured, **result.summary(), "dynamic": [point.to_json() for point in points]}


def _shown(estimate: Any) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}-{estimate.high:.2f})"
