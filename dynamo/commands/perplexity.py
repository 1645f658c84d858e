"""Perplexity of every head on held-out conversations, each read alone from its first token."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="embedded", help="embedded, embedded/base, folder or hub id")
    parser.add_argument("--data", required=True, help="JSONL (also .gz) of conversations or texts")
    parser.add_argument(
        "--cut", type=int, default=512, help="tokens of a conversation that are read (default: 512)"
    )
    parser.add_argument("--limit", type=int, default=0, help="read only the first conversations, 0 for all")


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import data, loading
    from dynamo.evaluation import perplexity
    from dynamo.model import DynamoForCausalLM

    if arguments.limit < 0:
        raise ValueError(f"limit: expected 0 (all) or more conversations, got {arguments.limit}")
    model, tokenizer, _ = loading.load_model(arguments.model)
    if not isinstance(model, DynamoForCausalLM):
        model = DynamoForCausalLM.from_neox(model, num_token_heads=1)
    positions = model.config.max_position_embeddings
    if not model.config.num_token_heads < arguments.cut <= positions:
        raise ValueError(
            f"cut: expected {model.config.num_token_heads + 1} (a target for every head) to {positions} "
            f"(the model's positions) tokens, got {arguments.cut}"
        )
    documents = data.read_documents(arguments.data, tokenizer)
    documents = documents[: arguments.limit or None]
    result = perplexity.measure(model, documents, data.text_bytes_per_token(tokenizer), arguments.cut)
    for head, (nats, ppl, joint) in enumerate(
        zip(result.mean_nats, result.ppl, result.joint_ppl, strict=True), 1
    ):
        print(
            f"head {head}: {nats:.4f} nats  PPL_{head} {ppl:.2f}  PPL_1:{head} {joint:.2f}", file=sys.stderr
        )
    print(f"bits per byte of text (head 1): {result.bits_per_byte:.4f}", file=sys.stderr)
    return {"model": arguments.model, "documents": len(documents), "cut": arguments.cut, **result.summary()}
