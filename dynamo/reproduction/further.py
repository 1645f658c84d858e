"""Training runs that experiments share, by the project's own trainer; each is trained once.

Every run starts from a finished model. Heads learn at the rate that the embedded pair was trained with, the
base at a hundredth of it and the heads' gradient into the base at a thousandth, which are the ratios of the
paper's LR_M, LR_B and LR_MB. A finished run is loaded, a killed one resumes from its checkpoint.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from dynamo import loading
from dynamo.cooccurrence.counting import largest_vocab
from dynamo.cooccurrence.external import count_files
from dynamo.cooccurrence.table import CooccurrenceTable
from dynamo.data import text
from dynamo.data.blocks import Corpus, TokenBlocks
from dynamo.data.corpus import DiskCorpus, TokenFile, tokenise
from dynamo.model import DynamoForCausalLM, load_dynamo
from dynamo.reproduction.workspace import Workspace
from dynamo.sampling.options import MAX_ORDER
from dynamo.training.options import FREE_OPTIONS, TrainingOptions
from dynamo.training.trainer import Rows, Trainer, save_model

BATCH_SIZE, BLOCK_SIZE = 4, 512
HEAD_LR, BASE_LR = 2e-3, 2e-5
DEPENDS = ("train", "steps", "seed")


def training_options(workspace: Workspace, **changes: Any) -> TrainingOptions:
    fields = {
        "steps": workspace.steps,
        "batch_size": BATCH_SIZE,
        "base_lr": BASE_LR,
        "head_lr": HEAD_LR,
        "warmup": 0.05,
        "weight_decay": 0.1,
        "mixed_precision": "bf16",
        "evaluate_every": 0,
        "checkpoint_every": 20,
        "seed": workspace.seed,
    }
    return TrainingOptions(**{**fields, **changes})


def trained(
    workspace: Workspace,
    name: str,
    make: Callable[[], DynamoForCausalLM],
    rows: Rows,
    depends: tuple[str, ...] = DEPENDS,
    penalty: Callable[[DynamoForCausalLM], torch.Tensor | float] = lambda model: 0.0,
    **changes: Any,
) -> DynamoForCausalLM:
    """The model of `make` after the workspace's steps on `rows`; loaded if the run was finished before.

    name: of the run's folder, one for each set of the settings in `depends`; changes: of `training_options`.
    Raises ValueError if the finished run had other options or data.
    """
    options = training_options(workspace, **changes)
    folder = workspace.folder_of("training", depends) / name
    run = {"options": asdict(options), "rows": rows.fingerprint()}
    if (folder / "model").exists():
        done = json.loads((folder / "model" / "run.json").read_text(encoding="utf-8"))
        # Options that were added to training since then do not make it another run.
        known = done["options"].keys() - set(FREE_OPTIONS)
        changed = any(done["options"][name] != run["options"].get(name) for name in known)
        if changed or done["rows"] != run["rows"]:
            raise ValueError(f"output: {folder} holds a run of other options or data; delete it")
        return load_dynamo(str(folder / "model")).eval()
    torch.manual_seed(workspace.seed)  # for the weights of new layers
    trainer = Trainer(make(), rows, options, folder, penalty=penalty)
    workspace.progress(f"{name}: training from step {trainer.step} to {options.steps}")
    model = trainer.run()
    save_model(model, workspace.pair.tokenizer, folder / "model", [("run.json", json.dumps(run))])
    trainer.discard_checkpoint()
    return model


def describe(workspace: Workspace, **changes: Any) -> dict[str, Any]:
    """Steps, tokens a step and rates of the runs, for the report."""
    options = training_options(workspace, **changes)
    return {
        "steps": options.steps,
        "tokens_per_step": options.batch_size * BLOCK_SIZE,
        "base_lr": options.base_lr,
        "head_lr": options.head_lr,
        "corpus_tokens": sum(file.tokens for file in token_files(workspace)),
    }


def sentence(training: dict[str, Any]) -> str:
    """`describe` in words, for a table's caption."""
    tokens = training["steps"] * training["tokens_per_step"]
    return (
        f"{training['steps']} steps of {training['tokens_per_step']:,} tokens, "
        f"{100 * tokens / training['corpus_tokens']:.3g} % of the corpus; rates "
        f"{training['base_lr']:g} (base) and {training['head_lr']:g} (heads)"
    )


def with_heads(workspace: Workspace, **heads: Any) -> DynamoForCausalLM:
    """A copy of the pair's base in float32 with new token heads."""
    return DynamoForCausalLM.from_base(copy.deepcopy(workspace.pair.base).float(), **heads)


def base_trained_on(workspace: Workspace) -> DynamoForCausalLM:
    """The pair's base after the same further training without heads: the paper's Pythia-70M+."""
    make = partial(with_heads, workspace, num_token_heads=1)
    return trained(workspace, "base-further", make, blocks(workspace))


def token_files(workspace: Workspace) -> list[TokenFile]:
    """The training data as token files, tokenised once."""
    folder = workspace.folder_of("tokens", ("train",))
    return tokenise([workspace.train_data], workspace.pair.tokenizer, folder)


def blocks(workspace: Workspace, documents: Corpus | None = None) -> TokenBlocks:
    """Training rows of the whole training data, or of these documents; runs of one seed share the order."""
    corpus = DiskCorpus(token_files(workspace)) if documents is None else documents
    return TokenBlocks(corpus, separator(workspace.pair.tokenizer), BLOCK_SIZE, workspace.seed)


def separator(tokenizer: Any) -> int:
    """The token between documents."""
    return tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id


def long_table(workspace: Workspace) -> CooccurrenceTable:
    """The training data's table of tuples as long as any variant emits, or as can be packed
    (`counting.largest_vocab`), minimum count 1; counted once."""
    tokenizer = workspace.pair.tokenizer
    order = max(order for order in range(2, MAX_ORDER + 1) if largest_vocab(order) >= len(tokenizer))
    path = workspace.folder_of("table", ("train",), order=order) / loading.TABLE_FILE
    if not path.is_file():
        workspace.progress(f"counting tuples of up to {order} tokens")
        unigrams, levels, min_count = count_files(token_files(workspace), order, len(tokenizer))
        source, name = workspace.train_data.name, text.fingerprint(tokenizer)
        CooccurrenceTable(unigrams, levels, min_count, False, source, name).save(path)
    return CooccurrenceTable.load(path)
