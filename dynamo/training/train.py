"""Train token heads on a base model, or go on training one, by the modified causal-LM objective.

With one head this is plain causal-LM training and the result is a stock checkpoint. A run whose
output folder holds a checkpoint continues from it, and one that receives SIGTERM writes one first; the result
is OUTPUT/model. Runs unchanged on many processes under torchrun or accelerate launch.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from dynamo import loading
from dynamo.common.distributed import on_main_first, started_together
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data import instructions, text
from dynamo.data.blocks import TokenBlocks
from dynamo.data.corpus import DiskCorpus, tokenise
from dynamo.data.documents import fitted, read_documents
from dynamo.data.reading import Reading
from dynamo.data.rows import read_rows
from dynamo.data.sources import data_files
from dynamo.decoding.engine import end_of_text_ids
from dynamo.model import DynamoForCausalLM, architecture_of
from dynamo.model.architectures import max_positions, new_base_config
from dynamo.model.shape import ModelShape, papers_layer
from dynamo.training.head_trainer import HeadTrainer, StateRows
from dynamo.training.loop import TrainingLoop
from dynamo.training.options import TrainingRun
from dynamo.training.stem_states import StemStates
from dynamo.training.trainer import Trainer, save_model


@dataclass(frozen=True)
class TrainingResult:
    """output: the model's folder; validation_nats: mean nats per target of each head, [] without validation;
    cost: of the main process's steps, `tokens_per_second` and `peak_mb`; reading: what became of the data's
    rows (`dynamo.data.reading`)."""

    output: Path
    steps: int
    validation_nats: list[float]
    cost: dict[str, float]
    reading: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """As JSON."""
        values = {**vars(self), "output": str(self.output), **self.cost}
        del values["cost"]
        return values


def train(run: TrainingRun) -> TrainingResult:
    """Train heads, or a whole model, as `run` says.

    Raises ValueError for options out of range, an output that is finished already, and where SIGTERM ended
    the run, which the same call then continues.
    """
    if run.model is None and run.new is None:
        raise ValueError("model: name one to start from with --model, --new or --recipe")
    if run.model is not None and run.new is not None:
        raise ValueError("new: leave it out to start from a model, or leave out --model")
    check_unfinished(run.output)
    files = on_main_first(lambda: data_files(run.data))
    held_out_names = [run.validation] if run.validation else []
    held_out_files = on_main_first(lambda: data_files(held_out_names, "validation"))
    model, tokenizer = _starting_model(run, files)
    check_length("block_size", run.block_size, model.config)
    stop_at_end_of_turn(model, tokenizer)
    if run.distill is not None:
        return _train_on_states(run, model, tokenizer, files, held_out_files)
    tokens = run.tokens or run.output / "tokens"
    reading, held_out = Reading(run.strict), Reading(run.strict)
    corpus = DiskCorpus(
        on_main_first(lambda: tokenise(files, tokenizer, tokens, run.workers, reading=reading))
    )
    blocks = TokenBlocks(corpus, _separator(tokenizer), run.block_size, run.options.seed)
    validation = read_documents(held_out_files, tokenizer, held_out) if held_out_files else []
    trainer = Trainer(model, blocks, run.options, run.output, validation, run.block_size)
    if trainer.is_main:
        reading.say(
            "data",
            f"{corpus.tokens:,} tokens, {blocks.blocks_per_epoch:,} blocks of {run.block_size} an epoch",
        )
        if run.validation:
            held_out.say("validation")
    return TrainingResult(**train_and_save(trainer, tokenizer), reading=reading.to_json())


def _train_on_states(
    run: TrainingRun,
    model: DynamoForCausalLM,
    tokenizer: Any,
    files: Sequence[Path],
    held_out_files: Sequence[Path],
) -> TrainingResult:
    """Heads alone, on what is kept of a base that runs once per token."""
    if started_together():
        raise ValueError("distill: it runs in one process; start it without a launcher")
    if not model.token_heads:
        raise ValueError("heads: 1 leaves no extra head to train; use 2 or more")
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    model.eval()
    states = StemStates(run.states or run.output / "states", model, run.options.mixed_precision)

    def rows(names: Sequence[Path], reading: Reading) -> StateRows:
        examples = fitted(instructions.read_examples(names, reading), tokenizer, reading)
        found = instructions.encode(list(examples), tokenizer, run.block_size)
        states.add(model, found, progress=True)
        return StateRows(states, states.places(found), run.options.seed)

    reading, held_out = Reading(run.strict), Reading(run.strict)
    training = rows(files, reading)
    reading.say("data", f"{len(training):,} conversations of at most {run.block_size} tokens")
    model.count_tokens(torch.from_numpy(training.answer_tokens()))
    validation = rows(held_out_files, held_out) if held_out_files else None
    if validation:
        held_out.say("validation")
    trainer = HeadTrainer(
        model,
        training,
        run.options,
        run.output,
        run.distill,
        run.position_share,
        validation,
        run.overlap_weight,
    )
    return TrainingResult(**train_and_save(trainer, tokenizer), reading=reading.to_json())


def check_unfinished(output: Path) -> None:
    """Raise ValueError if a folder holds the result of a run."""
    if (output / "model").exists():
        raise ValueError(f"output: {output / 'model'} holds a finished model already; name another folder")


def check_length(name: str, length: int, config: Any) -> None:
    """Raise ValueError unless rows of `length` tokens have a target for every head and fit the model."""
    least, most = config.num_token_heads + 1, max_positions(config)
    if not least <= length <= most:
        raise ValueError(
            f"{name}: expected {least} to {most} (a target for every head, a position for every token), "
            f"got {length}"
        )


def train_and_save(
    trainer: TrainingLoop, tokenizer: Any, table: CooccurrenceTable | None = None
) -> dict[str, Any]:
    """Train to the last step and write model, tokenizer and table to OUTPUT/model; the fields of a result.

    Raises ValueError if SIGTERM stops it earlier, with a checkpoint written.
    """
    with _sigterm_received() as received:
        trained = trainer.run(stop=received)
    if trainer.step < trainer.options.steps:
        raise ValueError(
            f"output: stopped after step {trainer.step} of {trainer.options.steps}; the same command goes on "
            "there"
        )
    target = trainer.output / "model"
    if trainer.is_main:
        one_head = trained.config.num_token_heads == 1
        save_model(trained.to_base() if one_head else trained, tokenizer, target)
        if table is not None:
            table.save(target / loading.TABLE_FILE)
        trainer.discard_checkpoint()
    return {
        "output": target,
        "steps": trainer.step,
        "validation_nats": trainer.last_validation,
        "cost": trainer.cost,
    }


@contextmanager
def _sigterm_received() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM was received, which does not end this process meanwhile, so that it can write a
    checkpoint. Where there are several processes it ends them: they would not stop at the same step."""
    if started_together() or threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    event = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _starting_model(run: TrainingRun, files: Sequence[Path]) -> tuple[DynamoForCausalLM, Any]:
    head_options = {
        "num_token_heads": run.heads,
        "head_layers": run.head_layers,
        "head_init": run.head_init,
        "head_source": run.head_source,
        "own_output_embedding": run.own_output_embedding,
        "correlator_rank": run.correlator_rank,
        "correlator_kind": run.correlator_kind,
    }
    given = {name: value for name, value in head_options.items() if value is not None}
    torch.manual_seed(run.options.seed)
    if run.new is not None:
        if run.tokenizer is None:
            raise ValueError("tokenizer: --new needs --tokenizer, a tokenizer folder")
        tokenizer = loading.load_tokenizer(run.tokenizer)
        _fit_to_conversations("tokenizer", tokenizer, files)
        base = _new_base(run.new, tokenizer, run.max_length)
    else:
        base, tokenizer, _ = loading.load_model(run.model, device="cpu", dtype=torch.float32)
        _fit_to_conversations("model", tokenizer, files)
        check_vocabulary(run.model, base, tokenizer)
    if isinstance(base, DynamoForCausalLM):
        wrong = {name: value for name, value in given.items() if getattr(base.config, name, None) != value}
        if wrong:
            raise ValueError(
                f"model: {run.model} has token heads already and keeps them; leave out {', '.join(wrong)}, "
                "or start from its base (to_base)"
            )
        return base, tokenizer
    return DynamoForCausalLM.from_base(base, **{"num_token_heads": 3, **given}), tokenizer


def _fit_to_conversations(option: str, tokenizer: Any, files: Sequence[Path]) -> None:
    """A tokenizer without a chat template gets markers if a file begins with a conversation."""
    if not text.has_chat_template(tokenizer) and any(
        isinstance(next(read_rows(file), ""), list) for file in files
    ):
        give_markers(option, tokenizer)


def give_markers(option: str, tokenizer: Any) -> None:
    """Give a tokenizer without a chat template markers, and say so; option: what it came with."""
    if not text.has_chat_template(tokenizer):
        print(f"{option}: {text.MARKERS_ADDED}", file=sys.stderr)
        text.add_chat_template(tokenizer)


def check_vocabulary(name: str, model: PreTrainedModel, tokenizer: Any) -> None:
    """Raise ValueError unless a model has ids for the markers that its tokenizer was given."""
    missing = len(tokenizer) - model.config.vocab_size
    if missing > 0:
        raise ValueError(
            f"model: {name} has {model.config.vocab_size} ids, its tokenizer needs {missing} more; "
            "resize its embeddings first (resize_token_embeddings)"
        )


def _separator(tokenizer: Any) -> int:
    """The token between documents: the tokenizer's own mark of a text's beginning or end."""
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        raise ValueError("tokenizer: has neither a bos nor an eos token to put between documents; set one")
    return separator


def stop_at_end_of_turn(model: DynamoForCausalLM, tokenizer: Any) -> None:
    """A model that learns a chat template must also stop where a turn ends."""
    ends = end_of_text_ids(model, tokenizer)
    if text.has_chat_template(tokenizer) and ends:
        model.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else next(iter(ends))


def _new_base(shape: str, tokenizer: Any, max_length: int) -> PreTrainedModel:
    """A new base of the paper's family, of a shape such as 8x256x4, for a tokenizer."""
    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape)
    if not match:
        raise ValueError(f"new: expected LAYERSxHIDDENxHEADS such as 8x256x4, got {shape!r}")
    layers, hidden, heads = map(int, match.groups())
    if not layers or not heads or hidden % heads:
        raise ValueError(f"new: {hidden} hidden units do not divide by {heads} attention heads")
    config = new_base_config(
        ModelShape(papers_layer(hidden, heads), layers, len(tokenizer), max_length),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return architecture_of(config).model_class(config)
