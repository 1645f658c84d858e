"""Continual learning: the pair's DynaMo model learns a second corpus; what is left of the first?

Three ways, for the same steps: plain; with replay, where every other row is of the first corpus; and with an
elastic-weight penalty (Kirkpatrick et al., Overcoming catastrophic forgetting in neural networks, 2017),
F/2 (theta - theta*)^2, which holds the weights that the first corpus needs. F is the diagonal of the Fisher
information of one token, with the text's own labels (the empirical one), so the first corpus counts as if
there were as many of its tokens as of the second's.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamo.common.statistics import Estimate
from dynamo.data.blocks import TokenBlocks
from dynamo.model import DynamoForCausalLM
from dynamo.reproduction import claims, further, measures
from dynamo.reproduction.claims import Claim
from dynamo.reproduction.estimates import signed
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.variants import SAME
from dynamo.reproduction.workspace import Workspace
from dynamo.training.trainer import Rows

DEPENDS = ("train", "other", "steps", "seed")
# A tenth of the pair's own rate, for stem and heads alike.
RATES = {"base_lr": 2e-4, "head_lr": 2e-4}
HELD_OUT = 20  # every so many-th example of the second corpus is only measured on
FISHER_ROWS = 64
WAYS = {"plain": "plain", "replay": "with replay", "elastic": "with the elastic-weight penalty"}


class Alternating:
    """Rows of several sequences in turn."""

    def __init__(self, sequences: Sequence[Rows]):
        self._sequences = sequences

    def fingerprint(self) -> str:
        return f"{zlib.crc32(' '.join(each.fingerprint() for each in self._sequences).encode()):08x}"

    def batch(self, start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        rows = []
        for index in range(start, start + count):
            number, turn = divmod(index, len(self._sequences))
            rows.append(self._sequences[turn].batch(number, 1))
        ids, labels = zip(*rows, strict=True)
        return np.concatenate(ids), np.concatenate(labels)


def token_fisher(model: DynamoForCausalLM, rows: Rows, count: int) -> dict[str, Tensor]:
    """Diagonal of the empirical Fisher information of one token, all heads' losses summed, by weight.

    From each of `count` rows the square of the gradient of its mean nats, times its tokens: tokens' gradients
    taken as independent, the square of their mean is one token's over their number.
    """
    model.eval()
    fisher = {name: torch.zeros_like(weight) for name, weight in model.named_parameters()}
    for index in range(count):
        ids, labels = (torch.from_numpy(each).to(model.device) for each in rows.batch(index, 1))
        model.zero_grad()
        with torch.autocast(model.device.type, torch.bfloat16):
            loss = model(ids, labels=labels, return_logits=False).loss
        loss.backward()
        for name, weight in model.named_parameters():
            if weight.grad is not None:
                fisher[name] += weight.grad**2 * (ids.numel() / count)
    model.zero_grad()
    return fisher


def elastic_penalty(
    model: DynamoForCausalLM, fisher: dict[str, Tensor]
) -> Callable[[DynamoForCausalLM], Tensor]:
    """Half of F (theta - theta*)^2, summed over the weights; theta* are the model's weights now."""
    anchor = {name: weight.detach().clone() for name, weight in model.named_parameters()}

    def penalty(now: DynamoForCausalLM) -> Tensor:
        terms = [
            (fisher[name].to(weight.device) * (weight - anchor[name].to(weight.device)) ** 2).sum()
            for name, weight in now.named_parameters()
        ]
        return 0.5 * torch.stack(terms).sum()

    return penalty


def second_corpus(workspace: Workspace) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Documents of the workspace's other file: to train on, and held out."""
    documents = workspace.read(workspace.other)
    held_out = documents[::HELD_OUT]
    return [document for i, document in enumerate(documents) if i % HELD_OUT], held_out


def measure_continual(workspace: Workspace) -> dict[str, Any]:
    if workspace.other is None:
        return {"tested": False}
    train, held_out = second_corpus(workspace)
    held_out = workspace.chosen(held_out)
    first = further.blocks(workspace)
    second = TokenBlocks(
        train, further.separator(workspace.pair.tokenizer), further.BLOCK_SIZE, workspace.seed
    )
    start = partial(copy.deepcopy, workspace.pair.dynamo)
    models = {"before": lambda: start().float()}
    for way in WAYS:
        models[way] = partial(_learned, workspace, way, first, second)
    losses = {}
    for way, model in models.items():
        name = f"continual-{way}-{workspace.settings(('other',))['other'][-8:]}"
        losses[way] = (
            measures.losses(workspace, name, model),
            measures.losses(workspace, f"{name}-second", model, held_out),
        )
    return {
        "tested": True,
        "training": further.describe(workspace, **RATES),
        "second_tokens": int(sum(map(len, train))),
        "documents": [len(workspace.documents), len(held_out)],
        "fisher_rows": FISHER_ROWS,
        "ppl": {
            way: [
                {
                    "first_head": each.ppl["PPL_1"].to_json(),
                    "joint": each.ppl[f"PPL_1:{each.heads}"].to_json(),
                }
                for each in both
            ]
            for way, both in losses.items()
        },
        "excess_nats": {
            f"{one} - {other}": [
                losses[one][corpus].excess(losses[other][corpus], 1).to_json() for corpus in (0, 1)
            ]
            for one, other in (
                *((way, "before") for way in WAYS),
                ("replay", "plain"),
                ("elastic", "plain"),
            )
        },
    }


def _learned(workspace: Workspace, way: str, first: TokenBlocks, second: TokenBlocks) -> DynamoForCausalLM:
    before = copy.deepcopy(workspace.pair.dynamo).float()
    options: dict[str, Any] = {}
    if way == "elastic" and not (workspace.folder_of("training", DEPENDS) / "elastic" / "model").exists():
        workspace.progress(f"elastic: Fisher information of {FISHER_ROWS} rows")
        options["penalty"] = elastic_penalty(before, token_fisher(before, first, FISHER_ROWS))
    rows = Alternating([second, first]) if way == "replay" else second
    return further.trained(workspace, way, lambda: before, rows, DEPENDS, **options, **RATES)


def show_continual(result: dict[str, Any]) -> Shown:
    if not result["tested"]:
        return Shown((), Finding("cannot be tested here", "No second corpus was given (--other)."))
    rows = []
    for way, both in result["ppl"].items():
        cells = [f"{each['first_head']['value']:.3f} / {each['joint']['value']:.3f}" for each in both]
        changes: tuple[Any, ...] = (None, None)
        if way != "before":
            each = [Estimate.from_json(fields) for fields in result["excess_nats"][f"{way} - before"]]
            changes = tuple("{} ({})".format(*signed(change, 3)) for change in each)
        rows.append((WAYS.get(way, way), cells[0], changes[0], cells[1], changes[1]))
    found = []
    for way in ("replay", "elastic"):
        first, _ = (Estimate.from_json(fields) for fields in result["excess_nats"][f"{way} - plain"])
        _, learned = (Estimate.from_json(fields) for fields in result["excess_nats"][f"{way} - before"])
        forgets = f"{WAYS[way]} less of the first corpus is lost than plain"
        found.append(Claim(forgets, "-", first, claims.below(first, SAME)))
        found.append(Claim(f"{WAYS[way]} the second is learned", "-", learned, claims.below(learned)))
    columns = ("training", "first corpus: PPL_1 / PPL_1:n", "change, nats a token of head 1",
               "second corpus: PPL_1 / PPL_1:n", "change, nats a token of head 1")  # fmt: skip
    kept = ", ".join(
        f"{WAYS[way]} {result['excess_nats'][f'{way} - before'][0]['value']:+.3f} on the first and "
        f"{result['excess_nats'][f'{way} - before'][1]['value']:+.3f} on the second"
        for way in WAYS
    )
    finding = claims.together(found)
    return Shown(
        (
            Table(f"The pair's DynaMo model, {_sentence(result)}", columns, tuple(rows)),
            claims.table("Head 1, nats a token on the same documents", found),
        ),
        Finding(finding.verdict, f"{finding.sentence} Change of head 1's nats a token: {kept}."),
    )


def _sentence(result: dict[str, Any]) -> str:
    training = result["training"]
    tokens = training["steps"] * training["tokens_per_step"]
    return (
        f"{training['steps']} steps of {training['tokens_per_step']:,} tokens of a second corpus "
        f"({tokens / result['second_tokens']:.2g} times its {result['second_tokens']:,}; with replay half of "
        f"them), rate {training['base_lr']:g} for base and heads"
    )


CONTINUAL = Experiment(
    name="continual-learning",
    title="Open question: can a DynaMo model learn on without losing what it knew?",
    paper="Not tested; an open question of this project.",
    rule="Paired differences of head 1's nats a token, 95 % intervals over documents: with replay and with "
    f"the penalty the first corpus must suffer less than plainly, by more than {SAME} as runs differ by "
    "chance too, and the second must still be learned. All four must hold.",
    run=measure_continual,
    show=show_continual,
    depends=("train", "validation", "documents", "other", "steps", "seed"),
)
