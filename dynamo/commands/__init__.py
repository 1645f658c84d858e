"""The verbs of `python -m dynamo`: each module has `configure(parser)` and `run(arguments) -> dict`, and is
imported when it is used."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from typing import Any

from transformers.utils import logging

from dynamo.common.memory import NOWHERE_LEFT, is_out_of_memory
from dynamo.common.options import parse

VERBS = {
    "generate": "write one reply and show its chunks",
    "compare": "base and DynaMo on the same prompt, side by side",
    "converse": "have a chat model write conversations, data for its own heads",
    "data": "what train, finetune and count would read of your files",
    "train": "train token heads (or a base model) by the modified causal-LM objective",
    "finetune": "finetune on instructions, with the loss on the replies",
    "count": "count a co-occurrence table",
    "complete": "write the texts of the sentence-completion and Vicuna benchmarks",
    "judge": "have a judge model rate or compare the texts of `complete`",
    "perplexity": "perplexity of every head on held-out text",
    "audit": "what the base model thinks of a text, token by token",
    "sweep": "speed, passes and quality over back-off thresholds, with intervals",
    "reproduce": "rerun the paper's experiments and write the report",
    "bench": "speed against transformers' generate, and where the time goes",
    "memory": "what a model takes in memory, loaded in every way",
    "embedded": "make the embedded pair from the dialogues",
    "push": "upload a checkpoint with its model card to the hub",
    "space": "show, check or deploy the Hugging Face Space",
    "recipe": "the whole path of a Pythia chat pair, from base to Space",
}


def run_command(arguments: list[str]) -> dict[str, Any]:
    """The result of a command line, its verb first. Raises what the verb's function does, and SystemExit for
    flags that do not exist."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamo",
        description="Dynamic multi-token sampling. Tables go to stderr, one JSON object to stdout.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n" + "\n".join(f"  {verb:12} {text}" for verb, text in VERBS.items()),
    )
    parser.add_argument(
        "verb", choices=VERBS, metavar="verb", help="see below; VERB --help lists its options"
    )
    verb = parser.parse_args(arguments[:1]).verb
    command = importlib.import_module(f"dynamo.commands.{verb}")
    own = argparse.ArgumentParser(prog=f"python -m dynamo {verb}", description=command.__doc__)
    command.configure(own)
    return command.run(parse(own, arguments[1:]))


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and print its result; the exit status."""
    # A model's weights load in seconds; the library's bars for them would drown the command's own output.
    logging.disable_progress_bar()
    try:
        result = run_command(sys.argv[1:] if arguments is None else arguments)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        print(f"error: {NOWHERE_LEFT}", file=sys.stderr)
        return 2
    print(json.dumps(result, ensure_ascii=False))
    return 0
