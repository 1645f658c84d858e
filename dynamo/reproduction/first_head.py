"""Is the first head a better transformer for the training with further heads?

The paper's first head predicts better than its Pythia base, and better than that base after the same further
training without heads (its Pythia-70M+). Here the same twice: the first head of the three-token variant
against the base trained on by the plain objective, for the same steps, on the same rows, at the same rate;
and the embedded pair itself, whose two models continued like that from one unfinished base.
"""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

from dynamo.common.statistics import Estimate
from dynamo.loading import EMBEDDED
from dynamo.reproduction import further, measures, variants
from dynamo.reproduction.claims import Claim, below
from dynamo.reproduction.estimates import interval, read, signed
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace

PAPER = {"base": 20.2, "further": 20.1, "dynamo": 18.3}
TITLES = {
    "base": "base as it was",
    "further": "base, trained on without heads",
    "dynamo": "first head of T3",
    "pair": "first head of the embedded pair",
}


def measure_first_head(workspace: Workspace) -> dict[str, Any]:
    models = {
        "base": partial(further.with_heads, workspace, num_token_heads=1),
        "further": partial(further.base_trained_on, workspace),
        "dynamo": partial(variants.model_of, workspace, "t3"),
    }
    compared = [("dynamo", "further"), ("dynamo", "base"), ("further", "base")]
    names = {"base": "base", "further": "base-further", "dynamo": "t3", "pair": "pair"}
    if workspace.pair.name == EMBEDDED:  # docs/embedded.md; of others it is not known how they were trained
        models["pair"] = lambda: copy.deepcopy(workspace.pair.dynamo).float()
        compared.append(("pair", "base"))
    found = {key: measures.losses(workspace, names[key], model) for key, model in models.items()}
    return {
        "training": further.describe(workspace),
        "documents": len(workspace.documents),
        "ppl_1": {key: losses.ppl["PPL_1"].to_json() for key, losses in found.items()},
        "excess_nats": {
            f"{one}-{other}": found[one].excess(found[other], 1).to_json() for one, other in compared
        },
    }


def show_first_head(result: dict[str, Any]) -> Shown:
    ppl, excess = read(result["ppl_1"]), read(result["excess_nats"])
    rows = tuple((TITLES[key], PAPER.get(key), ppl[key].value, interval(ppl[key], ".3f")) for key in ppl)
    compared = tuple(
        (f"{TITLES[one]} minus {TITLES[other]}", *signed(excess[f"{one}-{other}"]))
        for one, other in (key.split("-") for key in excess)
    )
    steps = result["training"]["steps"]
    found = [_claim(f"after {steps} steps at the paper's ratio of rates", excess["dynamo-further"])]
    if "pair-base" in excess:
        words = "in the embedded pair, both trained on from one unfinished base for longer, at one rate"
        found.append(_claim(words, excess["pair-base"]))
    verdicts = [claim.verdict for claim in found]
    return Shown(
        (
            Table("PPL_1 on held-out documents", ("model", "Pythia-70M", "here", "95 %"), rows),
            Table(
                "Differences on the same documents, nats a token", ("models", "difference", "95 %"), compared
            ),
        ),
        Finding(
            next((verdict for verdict in ("differs", "holds") if verdict in verdicts), verdicts[0]),
            "The first head minus the base trained on, nats a token (below 0 is better): "
            + "; ".join(f"{claim.words} {' ('.join(signed(claim.difference))})" for claim in found)
            + ".",
        ),
    )


def _claim(words: str, difference: Estimate) -> Claim:
    return Claim(words, "", difference, below(difference))


BETTER = Experiment(
    name="better-transformer",
    title="Open question: does training with heads make a better transformer?",
    paper="PPL_1 of Pythia-70M is 20.2; trained on without heads 20.1; DynaMo's first head has 18.3.",
    rule="Paired differences of nats a token between the first head and the base trained on without heads, "
    "with 95 % intervals over documents, in the run here and in the embedded pair: one interval below 0 and "
    "none above holds, one above differs; where all hold 0 it cannot be told at this size.",
    run=measure_first_head,
    show=show_first_head,
    depends=measures.LOSSES_DEPEND,
    version=2,
)
