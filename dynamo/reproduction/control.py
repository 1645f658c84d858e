"""Is the first head a better transformer for the training with further heads?

The paper's first head predicts better than its Pythia base, and better than that base after the same further
training without heads (its Pythia-70M+). Here the same: the first head of the three-token variant against the
base trained on by the plain objective, for the same steps, on the same rows, at the same rate.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from dynamo.evaluation.intervals import Estimate
from dynamo.reproduction import further, measures, variants
from dynamo.reproduction.claims import below, written
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table

if TYPE_CHECKING:
    from dynamo.reproduction.workspace import Workspace

PAPER = {"base": 20.2, "further": 20.1, "dynamo": 18.3}
TITLES = {
    "base": "base as it was",
    "further": "base, trained on without heads",
    "dynamo": "first head of T3",
}


def measure(workspace: Workspace) -> dict[str, Any]:
    models = {
        "base": partial(further.with_heads, workspace, num_token_heads=1),
        "further": partial(further.base_trained_on, workspace),
        "dynamo": partial(variants.model_of, workspace, "t3"),
    }
    names = {"base": "base", "further": "base-further", "dynamo": "t3"}
    found = {
        key: measures.losses(workspace, names[key], model, workspace.documents)
        for key, model in models.items()
    }
    return {
        "training": further.describe(workspace),
        "documents": len(workspace.documents),
        "ppl_1": {key: losses.ppl(1).to_json() for key, losses in found.items()},
        "excess_nats": {
            f"{one}-{other}": found[one].excess(found[other], 1).to_json()
            for one, other in (("dynamo", "further"), ("dynamo", "base"), ("further", "base"))
        },
    }


def show(result: dict[str, Any]) -> Shown:
    ppl = {key: Estimate.from_json(fields) for key, fields in result["ppl_1"].items()}
    excess = {key: Estimate.from_json(fields) for key, fields in result["excess_nats"].items()}
    rows = tuple(
        (TITLES[key], PAPER[key], ppl[key].value, f"{ppl[key].low:.3f} to {ppl[key].high:.3f}") for key in ppl
    )
    compared = tuple(
        (f"{TITLES[one]} minus {TITLES[other]}", *written(excess[f"{one}-{other}"]))
        for one, other in (key.split("-") for key in excess)
    )
    difference = excess["dynamo-further"]
    return Shown(
        (
            Table("PPL_1 on held-out documents", ("model", "Pythia-70M", "here", "95 %"), rows),
            Table(
                "Differences on the same documents, nats a token", ("models", "difference", "95 %"), compared
            ),
        ),
        Finding(
            below(difference),
            f"Beside the base trained on without heads, the first head is {difference.value:+.4f} nats a "
            f"token ({difference.low:+.4f} to {difference.high:+.4f}; below 0 is better), after "
            f"{result['training']['steps']} steps.",
        ),
    )


BETTER = Experiment(
    name="better-transformer",
    title="Open question: does training with heads make a better transformer?",
    paper="PPL_1 of Pythia-70M is 20.2; trained on without heads 20.1; DynaMo's first head has 18.3.",
    rule="Paired difference of nats a token between T3's first head and the base trained on without heads: "
    "holds if its 95 % interval over documents is below 0, differs if above; where the interval holds 0 it "
    "cannot be told at this size.",
    run=measure,
    show=show,
    depends=("train", "validation", "documents", "steps", "seed"),
)
