"""How the trained models of an experiment are compared: by held-out losses and by replies to prompts.

Everything is kept per document and per prompt, so that two models are compared on the same ones: an interval
is that of a paired difference. Models are measured in the precision they were trained in (bfloat16 products).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from dynamo.common.files import write_json
from dynamo.common.statistics import Estimate, bootstrap, bootstrap_ratio, ratio
from dynamo.data.held_out import held_out_nats
from dynamo.decoding.engine import Engine
from dynamo.evaluation.perplexity import head_estimates
from dynamo.evaluation.replies import audited_replies
from dynamo.model import DynamoForCausalLM
from dynamo.reproduction.further import BLOCK_SIZE, long_table
from dynamo.reproduction.workspace import Workspace
from dynamo.sampling.options import SamplingOptions

LOSSES_DEPEND = ("train", "validation", "documents", "steps", "seed")
REPLIES_DEPEND = ("train", "prompts", "replies", "steps", "seed")


@dataclass(frozen=True)
class Losses:
    """nats, targets: (documents, heads), summed over each document's positions."""

    nats: np.ndarray
    targets: np.ndarray

    @property
    def heads(self) -> int:
        return self.nats.shape[1]

    @cached_property
    def ppl(self) -> dict[str, Estimate]:
        """PPL_1 .. PPL_n, PPL_1:2 .. PPL_1:n and PPL_1:1, which is PPL_1."""
        ppl = head_estimates(np.stack([self.nats, self.targets], axis=1))
        return {**ppl, "PPL_1:1": ppl["PPL_1"]}

    def excess(self, other: Losses, head: int) -> Estimate:
        """Nats a target by which this model's head is worse than the other's on the same documents."""
        assert np.array_equal(self.targets[:, head - 1], other.targets[:, head - 1]), "other documents"
        return bootstrap_ratio(
            self.nats[:, head - 1] - other.nats[:, head - 1], self.targets[:, head - 1].astype(float)
        )

    def to_json(self) -> dict[str, Any]:
        heads = range(1, self.heads + 1)
        return {
            "ppl": [self.ppl[f"PPL_{n}"].to_json() for n in heads],
            "joint_ppl": [self.ppl[f"PPL_1:{n}"].to_json() for n in heads],
        }


def document_losses(
    model: DynamoForCausalLM, documents: Sequence[np.ndarray], cut: int = BLOCK_SIZE
) -> Losses:
    with torch.autocast(model.device.type, torch.bfloat16):
        return Losses(*held_out_nats(model, documents, cut))


@dataclass(frozen=True)
class Answers:
    """Per prompt, of its replies: tokens, passes, nats under the pair's base, tokens that it gives < 1 %."""

    tokens: np.ndarray
    passes: np.ndarray
    nats: np.ndarray
    unlikely: np.ndarray

    @property
    def tokens_per_forward(self) -> Estimate:
        return bootstrap_ratio(self.tokens, self.passes)

    def to_json(self) -> dict[str, Any]:
        return {
            "tokens_per_forward": self.tokens_per_forward.to_json(),
            "nats_per_token": bootstrap_ratio(self.nats, self.tokens).to_json(),
            "share_below_1_percent": bootstrap_ratio(self.unlikely, self.tokens).to_json(),
        }

    def faster(self, other: Answers) -> Estimate:
        """By how many tokens a pass this model is ahead of the other, over the same prompts."""
        return _difference(self.tokens, self.passes, other.tokens, other.passes)

    def drift(self, other: Answers) -> Estimate:
        """By how many nats a token its replies are further from the base's, over the same prompts."""
        return _difference(self.nats, self.tokens, other.nats, other.tokens)


def _difference(*columns: np.ndarray) -> Estimate:
    """First over second column less third over fourth, pooled."""
    return bootstrap(
        np.stack(columns, axis=1),
        lambda pooled: ratio(pooled[:, 0], pooled[:, 1]) - ratio(pooled[:, 2], pooled[:, 3]),
    )


def excess_nats(
    found: Mapping[str, Losses], pairs: Iterable[tuple[str, str]], heads: Sequence[int]
) -> dict[str, list[dict[str, float]]]:
    """ "one - other" -> `Losses.excess` of each of the heads."""
    return {
        f"{one} - {other}": [found[one].excess(found[other], head).to_json() for head in heads]
        for one, other in pairs
    }


def losses(
    workspace: Workspace,
    name: str,
    model: Callable[[], DynamoForCausalLM],
    documents: Sequence[Any] | None = None,
) -> Losses:
    """`document_losses` (by default of the workspace's documents), kept by name under its settings."""
    documents = workspace.documents if documents is None else documents

    def read_losses() -> dict[str, Any]:
        workspace.progress(f"{name}: losses of {len(documents)} documents")
        measured = document_losses(model(), documents)
        return {"nats": measured.nats.tolist(), "targets": measured.targets.tolist()}

    stored = _remembered(workspace, f"{name}-losses", LOSSES_DEPEND, read_losses)
    return Losses(np.array(stored["nats"]), np.array(stored["targets"]))


def answers(workspace: Workspace, name: str, model: Callable[[], DynamoForCausalLM]) -> Answers:
    """Replies at the default options, up to the model's own number of tokens a pass; remembered."""

    def reply() -> dict[str, Any]:
        workspace.progress(f"{name}: replies to {len(workspace.prompts)} prompts")
        return _answer(workspace, model())

    stored = _remembered(workspace, f"{name}-replies", REPLIES_DEPEND, reply)
    return Answers(**{key: np.array(values, dtype=float) for key, values in stored.items()})


def _answer(workspace: Workspace, model: DynamoForCausalLM) -> dict[str, list[float]]:
    table = long_table(workspace)
    options = SamplingOptions(max_order=min(model.config.num_token_heads, table.order))
    engine = Engine(model, table, workspace.pair.tokenizer)
    seeds, base = workspace.sizes.replies, workspace.pair.base
    rows = []
    for number, prompt in enumerate(workspace.prompts):
        found = audited_replies(engine, [prompt] * seeds, options, base, seed=number * seeds, batch=1)
        rows.append(
            (
                found.tokens,
                found.passes,
                -sum(sum(audit.log_probabilities) for audit in found.audits),
                sum(sum(audit.unlikely) for audit in found.audits),
            )
        )
    columns = [list(column) for column in zip(*rows, strict=True)]
    return dict(zip(("tokens", "passes", "nats", "unlikely"), columns, strict=True))


def _remembered(
    workspace: Workspace, name: str, depends: tuple[str, ...], make: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    path = workspace.folder_of("measured", depends) / f"{name}.json"
    if not path.is_file():
        write_json(path, make())
    return json.loads(path.read_text(encoding="utf-8"))
