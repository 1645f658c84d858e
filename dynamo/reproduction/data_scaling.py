"""How much data: heads alone, trained for the same steps on one, five, 25 and all hundredths of the corpus.

The base stays as it is, so what differs is what the heads have seen; smaller parts lie within larger ones and
are read several times over. The paper trains its heads on five hundredths of the base's own data.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from dynamo.common.statistics import Estimate
from dynamo.data.blocks import Documents, TokenBlocks
from dynamo.data.corpus import DiskCorpus
from dynamo.model import DynamoForCausalLM
from dynamo.reproduction import claims, further, measures, variants
from dynamo.reproduction.claims import Claim
from dynamo.reproduction.estimates import interval
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace

WHOLE = "t2-heads-only"
PARTS = {"heads-of-1-percent": 0.01, "heads-of-5-percent": 0.05, "heads-of-25-percent": 0.25, WHOLE: 1.0}
SAME = variants.SAME
REPEATED = 2


def part(workspace: Workspace, share: float) -> Documents:
    """That share of the training documents, at least a row; smaller shares lie within larger ones."""
    corpus = DiskCorpus(further.token_files(workspace))
    order = np.random.default_rng(workspace.seed).permutation(len(corpus.lengths))
    a_row = int((corpus.lengths[order] + 1).cumsum().searchsorted(further.BLOCK_SIZE)) + 1
    chosen = order[: max(a_row, round(share * len(order)))]
    return Documents([np.asarray(corpus[index]) for index in chosen.tolist()])


def model_of(workspace: Workspace, name: str) -> DynamoForCausalLM:
    if name == WHOLE:
        return variants.model_of(workspace, name)
    variant = variants.VARIANTS[WHOLE]
    make = partial(further.with_heads, workspace, **variant.heads)
    return further.trained(workspace, name, make, _rows(workspace, name), **variant.training)


def _rows(workspace: Workspace, name: str) -> TokenBlocks:
    return further.blocks(workspace, part(workspace, PARTS[name]))


def measure_data_scaling(workspace: Workspace) -> dict[str, Any]:
    training = further.describe(workspace, **variants.VARIANTS[WHOLE].training)
    seen = training["steps"] * training["tokens_per_step"]
    losses = {name: measures.losses(workspace, name, partial(model_of, workspace, name)) for name in PARTS}
    return {
        "training": training,
        "documents": len(workspace.documents),
        "parts": {
            name: {
                "share": share,
                "times_read": seen / _rows(workspace, name).tokens_per_epoch,
                **losses[name].to_json(),
            }
            for name, share in PARTS.items()
        },
        "excess_nats": {
            name: losses[name].excess(losses[WHOLE], 2).to_json() for name in PARTS if name != WHOLE
        },
    }


def show_data_scaling(result: dict[str, Any]) -> Shown:
    rows = []
    for measured in result["parts"].values():
        ppl = Estimate.from_json(measured["ppl"][1])
        share, times = f"{100 * measured['share']:g} %", f"{measured['times_read']:.2f}"
        rows.append((share, times, f"{ppl.value:.2f}", interval(ppl)))
    found = {name: _claim(result["parts"][name], each) for name, each in result["excess_nats"].items()}
    limited = [claim for name, claim in found.items() if _is_limit(result["parts"][name])]
    apart = [abs(claim.difference.value) for claim in found.values() if claim not in limited]
    finding = claims.together(limited)
    if not limited:
        finding = Finding("cannot be tested here", "In so few steps no part is read repeatedly.")
    runs = f" Runs whose part was no limit are up to {max(apart):.3f} nats apart." if apart else ""
    return Shown(
        (
            Table(
                f"Heads alone after {further.sentence(result['training'])}",
                ("share of the corpus", "times it is read", "PPL_2", "95 %"),
                tuple(rows),
            ),
            claims.table("Head 2 beside that of the whole corpus, nats a token", found.values()),
        ),
        Finding(finding.verdict, finding.sentence + runs),
    )


def _is_limit(measured: dict[str, Any]) -> bool:
    """Whether the part was read repeatedly; otherwise it shows only how far two runs are apart."""
    return measured["times_read"] >= REPEATED


def _claim(measured: dict[str, Any], excess: dict[str, float]) -> Claim:
    difference = Estimate.from_json(excess)
    verdict = claims.within(difference, SAME) if _is_limit(measured) else "cannot be tested here"
    words = f"heads of {100 * measured['share']:g} % are as good as those of all of it"
    return Claim(words, "-", difference, verdict)


HOW_MUCH = Experiment(
    name="how-much-data",
    title="Open question: how much data do heads need?",
    paper="All heads are trained on 5 % of the Pile, on which the bases were trained whole.",
    rule=f"Of the parts that are read at least {REPEATED} times in the run: head 2 must be within {SAME} "
    "nats a token of that of the whole corpus, by the 95 % interval of the paired difference over "
    "documents; differs if outside. A part that is read less often was no limit, and shows only how far "
    "two runs are apart.",
    run=measure_data_scaling,
    show=show_data_scaling,
    depends=measures.LOSSES_DEPEND,
    version=2,
)
