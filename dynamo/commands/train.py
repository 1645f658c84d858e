"""Train token heads on a GPT-NeoX model, or go on training one, by the modified causal-LM objective.

With --heads 1 this is plain causal-LM training and the result is a stock GPT-NeoX checkpoint. A run whose
output folder holds a checkpoint goes on from it, and one that is asked to end (SIGTERM) writes one first; the
result is OUTPUT/model. Runs unchanged on many processes under torchrun or accelerate launch.
"""

from __future__ import annotations

import argparse
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dynamo.common.distributed import started_together
from dynamo.common.options import add_arguments, from_arguments
from dynamo.training.recipes import RECIPES, TrainingOptions

BLOCK_SIZE = 512


def configure(parser: argparse.ArgumentParser) -> None:
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", help="model to start from: folder or hub id, GPT-NeoX or DynaMo")
    source.add_argument("--new", metavar="LAYERSxHIDDENxHEADS", help="a new GPT-NeoX, such as 8x256x4")
    parser.add_argument(
        "--recipe",
        choices=RECIPES,
        help="base, block size and options of one of the paper's seven models, or ours for its heads alone "
        "(-quick); flags that are given go first",
    )
    parser.add_argument("--tokenizer", help="folder of the tokenizer, for --new")
    parser.add_argument(
        "--data",
        required=True,
        nargs="+",
        help="conversations or texts: JSONL files (also .gz, .zst), folders of them, hub data sets of them, "
        "or a part of one (owner/name/train)",
    )
    parser.add_argument("--validation", help="JSONL file (also .gz), held out")
    parser.add_argument("--output", required=True, type=Path, help="folder of the run")
    heads = parser.add_argument_group(
        "token heads", "of a model that has none yet; a DynaMo model keeps its own"
    )
    heads.add_argument("--heads", type=int, help="token heads, 1 to 5 (default: 3)")
    heads.add_argument("--head-layers", type=int, help="decoder layers per extra head (default: 1)")
    heads.add_argument("--head-init", choices=("random", "copy"), help="default: random")
    heads.add_argument("--head-source", choices=("penultimate", "last"), help="default: penultimate")
    heads.add_argument("--own-output-embedding", action="store_true", default=None, help="one per extra head")
    parser.add_argument(
        "--block-size", type=int, help=f"tokens per block (default: {BLOCK_SIZE}, or the recipe's)"
    )
    parser.add_argument(
        "--max-length", type=int, default=1024, help="positions of a --new model (default: 1024)"
    )
    parser.add_argument("--tokens", type=Path, help="folder of the tokenised data (default: OUTPUT/tokens)")
    parser.add_argument("--workers", type=int, default=1, help="data files tokenised at once (default: 1)")
    add_arguments(parser, TrainingOptions, absent=True)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    from dynamo.common.distributed import on_main_first
    from dynamo.data.blocks import TokenBlocks
    from dynamo.data.corpus import DiskCorpus, data_files, tokenise
    from dynamo.data.documents import read_documents
    from dynamo.training.trainer import Trainer, save_model

    recipe = RECIPES.get(arguments.recipe)
    options = from_arguments(TrainingOptions, arguments, **(recipe.options if recipe else {}))
    _complete(arguments, recipe)
    target = arguments.output / "model"
    if target.exists():
        raise ValueError(f"output: {target} holds a finished model already; name another folder")
    model, tokenizer = _starting_model(arguments, options.seed)
    config = model.config
    if not config.num_token_heads < arguments.block_size <= config.max_position_embeddings:
        raise ValueError(
            f"block_size: expected {config.num_token_heads + 1} (a target for every head) to "
            f"{config.max_position_embeddings} (the model's positions), got {arguments.block_size}"
        )
    stop_at_end_of_turn(model, tokenizer)
    files = on_main_first(
        lambda: tokenise(data_files(arguments.data), tokenizer, arguments.tokens, arguments.workers)
    )
    blocks = TokenBlocks(DiskCorpus(files), _separator(tokenizer), arguments.block_size, options.seed)
    validation = read_documents(arguments.validation, tokenizer) if arguments.validation else []
    trainer = Trainer(model, blocks, options, arguments.output, validation, arguments.block_size)
    with _asked_to_end() as asked:
        trained = trainer.run(stop=asked)
    if trainer.step < options.steps:
        raise ValueError(
            f"output: stopped after step {trainer.step} of {options.steps}; the same command goes on there"
        )
    if trainer.is_main:
        save_model(trained.to_pythia() if config.num_token_heads == 1 else trained, tokenizer, target)
        trainer.discard_checkpoint()
    done = {"output": str(target), "steps": trainer.step, "validation_nats": trainer.last_validation}
    return {**done, **trainer.cost}


@contextmanager
def _asked_to_end() -> Iterator[Callable[[], bool]]:
    """Whether somebody has asked this process to end, which waits for its checkpoint meanwhile.

    One of several processes ends at once, as ever: they would not stop at the same step.
    """
    if started_together() or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _complete(arguments: argparse.Namespace, recipe: Any) -> None:
    """Fill in what flags leave to the recipe or to other flags."""
    if recipe and not arguments.new:
        arguments.model = arguments.model or recipe.base
    if not (arguments.model or arguments.new):
        raise ValueError("model: name one to start from with --model, --new or --recipe")
    if arguments.block_size is None:
        arguments.block_size = recipe.block_size if recipe else BLOCK_SIZE
    arguments.tokens = arguments.tokens or arguments.output / "tokens"


def _starting_model(arguments: argparse.Namespace, seed: int) -> tuple[Any, Any]:
    import torch
    from transformers import GPTNeoXForCausalLM

    from dynamo import loading
    from dynamo.model import DynamoForCausalLM

    asked = {
        "num_token_heads": arguments.heads,
        "head_layers": arguments.head_layers,
        "head_init": arguments.head_init,
        "head_source": arguments.head_source,
        "own_output_embedding": arguments.own_output_embedding,
    }
    asked = {name: value for name, value in asked.items() if value is not None}
    torch.manual_seed(seed)
    if arguments.new:
        if not arguments.tokenizer:
            raise ValueError("tokenizer: --new needs --tokenizer, a tokenizer folder")
        tokenizer = loading.load_tokenizer(arguments.tokenizer)
        base = GPTNeoXForCausalLM(new_config(arguments.new, tokenizer, arguments.max_length))
    else:
        base, tokenizer, _ = loading.load_model(arguments.model, device="cpu", dtype=torch.float32)
    if isinstance(base, DynamoForCausalLM):
        wrong = {name: value for name, value in asked.items() if getattr(base.config, name, None) != value}
        if wrong:
            raise ValueError(
                f"model: {arguments.model} has token heads already and keeps them; leave out "
                f"{', '.join(wrong)}, or start from its base (to_pythia)"
            )
        return base, tokenizer
    return DynamoForCausalLM.from_neox(base, **{"num_token_heads": 3, **asked}), tokenizer


def _separator(tokenizer: Any) -> int:
    """The token between documents: the tokenizer's own mark of a text's beginning or end."""
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        raise ValueError("tokenizer: has neither a bos nor an eos token to put between documents; set one")
    return separator


def stop_at_end_of_turn(model: Any, tokenizer: Any) -> None:
    """A model that learns the chat template must also stop where a turn ends."""
    from dynamo.data import text
    from dynamo.decoding.engine import end_of_text_ids

    if text.has_chat_template(tokenizer):
        ends = end_of_text_ids(model) | {tokenizer.convert_tokens_to_ids(text.END_OF_TURN)}
        model.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends))


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
