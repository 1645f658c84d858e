"""Train token heads on a GPT-NeoX model, or go on training one, by the modified causal-LM objective.

With --heads 1 this is plain causal-LM training and the result is a stock GPT-NeoX checkpoint. A run whose
output folder holds a checkpoint goes on from it; the result is OUTPUT/model.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

from dynamo.options import add_arguments, from_arguments
from dynamo.training import TrainingOptions


def configure(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--model", help="model to start from: folder or hub id, GPT-NeoX or DynaMo")
    source.add_argument("--new", metavar="LAYERSxHIDDENxHEADS", help="a new GPT-NeoX, such as 8x256x4")
    parser.add_argument("--tokenizer", help="folder of the tokenizer, for --new")
    parser.add_argument("--data", required=True, help="JSONL (also .gz) of conversations or texts")
    parser.add_argument("--validation", help="the same, held out")
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    parser.add_argument("--heads", type=int, default=3, help="token heads, 1 to 5 (default: 3)")
    parser.add_argument(
        "--head-layers", type=int, default=1, help="decoder layers per extra head (default: 1)"
    )
    parser.add_argument("--head-init", choices=("random", "copy"), default="random", help="default: random")
    parser.add_argument("--head-source", choices=("penultimate", "last"), default="penultimate")
    parser.add_argument("--own-output-embedding", action="store_true", help="one per extra head")
    parser.add_argument("--block-size", type=int, default=512, help="tokens per block (default: 512)")
    parser.add_argument(
        "--max-length", type=int, default=1024, help="positions of a --new model (default: 1024)"
    )
    add_arguments(parser, TrainingOptions)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo import data
    from dynamo.training import Trainer, save_model

    options = from_arguments(TrainingOptions, arguments)
    model, tokenizer = _starting_model(arguments, options.seed)
    if arguments.block_size > model.config.max_position_embeddings:
        raise ValueError(
            f"block_size: expected at most the model's {model.config.max_position_embeddings} positions, "
            f"got {arguments.block_size}"
        )
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    documents = data.read_documents(arguments.data, tokenizer)
    blocks = data.TokenBlocks(documents, separator, arguments.block_size, options.seed)
    validation = data.read_documents(arguments.validation, tokenizer) if arguments.validation else []
    trainer = Trainer(model, blocks, options, arguments.output, validation, arguments.block_size)
    trained = trainer.run()
    target = arguments.output / "model"
    save_model(trained.to_pythia() if trained.config.num_token_heads == 1 else trained, tokenizer, target)
    return {"output": str(target), "steps": trainer.step, "validation_nats": trainer.last_validation}


def _starting_model(arguments: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import GPTNeoXForCausalLM

    from dynamo import loading
    from dynamo.model import DynamoForCausalLM

    torch.manual_seed(seed)
    if arguments.new:
        if not arguments.tokenizer:
            raise ValueError("tokenizer: --new needs --tokenizer, a tokenizer folder")
        tokenizer = loading.load_tokenizer(arguments.tokenizer)
        base = GPTNeoXForCausalLM(new_config(arguments.new, tokenizer, arguments.max_length))
    else:
        base, tokenizer, _ = loading.load_model(arguments.model, device="cpu", dtype=torch.float32)
        if isinstance(base, DynamoForCausalLM):
            return base, tokenizer
    model = DynamoForCausalLM.from_neox(
        base,
        head_init=arguments.head_init,
        num_token_heads=arguments.heads,
        head_layers=arguments.head_layers,
        head_source=arguments.head_source,
        own_output_embedding=arguments.own_output_embedding,
    )
    return model, tokenizer


def new_config(shape: str, tokenizer: Any, max_length: int) -> Any:
    """A GPT-NeoX configuration of a shape such as 8x256x4 for a tokenizer."""
    from transformers import GPTNeoXConfig

    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    if not match:
        raise ValueError(f"new: expected LAYERSxHIDDENxHEADS such as 8x256x4, got {shape!r}")
    layers, hidden, heads = map(int, match.groups())
    if not layers or not heads or hidden % heads:
        raise ValueError(f"new: {hidden} hidden units do not divide by {heads} attention heads")
    return GPTNeoXConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
        max_position_embeddings=max_length,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
