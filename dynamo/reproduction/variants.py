"""Token heads of other numbers, shapes and beginnings: Table 10, and the question of how many tokens.

As in the paper, variants are of a two-token model: each continues from the pair's base for the same steps on
the same rows, and is compared on the same held-out documents. Heads start as copies of
the base's last layer, as the runs are short; the paper's random start is a variant.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from itertools import permutations
from typing import Any

from dynamo.common.statistics import Estimate
from dynamo.model import DynamoForCausalLM
from dynamo.reproduction import claims, further, measures
from dynamo.reproduction.claims import Claim
from dynamo.reproduction.estimates import interval
from dynamo.reproduction.experiment import Experiment, Shown, Table
from dynamo.reproduction.workspace import Workspace

# Nats a token that count as no difference. Intervals are over documents; two runs that differ in nothing but
# the order of their rows are apart as well, which `data_scaling` shows.
SAME = 0.05


@dataclass(frozen=True)
class Variant:
    """heads: options of the model's heads; training: changes of `further.training_options`; paper: PPL_1,
    PPL_2 and PPL_1:2 of its counterpart on Pythia-70M, None where it has none."""

    title: str
    heads: dict[str, Any]
    training: dict[str, Any] = field(default_factory=dict)
    paper: tuple[float, float, float] | None = None


def _copies(title: str, heads: int = 2, paper: Any = None, training: Any = None, **more: Any) -> Variant:
    return Variant(title, {"num_token_heads": heads, "head_init": "copy", **more}, training or {}, paper)


VARIANTS = {
    "t2": _copies("T2, copied heads"),
    "t3": _copies("T3, copied heads", 3),
    "t4": _copies("T4, copied heads", 4),
    "t5": _copies("T5, copied heads", 5),
    "t2-random": Variant("T2, random heads (the paper's)", {"num_token_heads": 2}, paper=(18.3, 112.4, 45.4)),
    "t2-heads-only": _copies("heads only (H)", training={"heads_only": True}, paper=(20.2, 119.1, 49.0)),
    "t2-two-layers": _copies("two layers per head", head_layers=2, paper=(18.3, 86.7, 39.9)),
    "t2-low-rate": _copies(
        "copied at the base's rate (C)", training={"head_lr": further.BASE_LR}, paper=(18.3, 296.4, 73.7)
    ),
    "t2-last": _copies("fed from the last layer (NP)", head_source="last", paper=(18.8, 131.1, 49.0)),
    "t2-own-embedding": _copies(
        "own layer and output embedding", own_output_embedding=True, paper=(18.3, 111.5, 45.2)
    ),
    "t2-embedding-alone": _copies(
        "own output embedding, no layer", head_layers=0, own_output_embedding=True, paper=(19.9, 252.4, 68.0)
    ),
}


def model_of(workspace: Workspace, name: str) -> DynamoForCausalLM:
    """The trained variant."""
    variant = VARIANTS[name]
    make = partial(further.with_heads, workspace, **variant.heads)
    return further.trained(workspace, name, make, further.blocks(workspace), **variant.training)


def _extra_parameters(model: DynamoForCausalLM) -> dict[str, float]:
    extra = sum(parameter.numel() for parameter in model.token_heads.parameters())
    return {"extra": extra, "share": extra / sum(p.numel() for p in model.backbone.parameters())}


def measure_variants(workspace: Workspace, names: tuple[str, ...]) -> dict[str, Any]:
    """Perplexities and parameters of variants, and by how many nats their heads 1 and 2 are worse."""
    found, variants = {}, {}
    for name in names:
        model = model_of(workspace, name)
        found[name] = measures.losses(workspace, name, lambda model=model: model)
        variants[name] = {**_extra_parameters(model), **found[name].to_json()}
    return {
        "training": further.describe(workspace),
        "documents": len(workspace.documents),
        "variants": variants,
        "excess_nats": measures.excess_nats(found, permutations(names, 2), (1, 2)),
    }


# -- Table 10 ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Comparison:
    """That head 2 of `one` is better than ("below"), worse than ("above") or as good as ("same") that of
    `other`; paper: the two PPL_2."""

    words: str
    one: str
    other: str
    expected: str
    paper: str

    def claim(self, result: dict[str, Any]) -> Claim:
        _, second = result["excess_nats"][f"{self.one} - {self.other}"]
        difference = Estimate.from_json(second)
        verdict = {
            "below": claims.below,
            "above": claims.above,
            "same": claims.within,
        }[self.expected](difference, SAME)
        return Claim(self.words, self.paper, difference, verdict)


TRAINING_COMPARISONS = (
    Comparison("two layers predict better than one", "t2-two-layers", "t2", "below", "86.7 / 112.4"),
    Comparison("heads alone learn less than with the base", "t2-heads-only", "t2", "above", "119.1 / 112.4"),
    Comparison("copies at the base's rate learn less than random heads at the full one",
               "t2-low-rate", "t2-random", "above", "296.4 / 112.4"),
    Comparison("a third head costs the second nothing", "t3", "t2", "same", "111.4 / 112.4"),
)  # fmt: skip
SHAPE_COMPARISONS = (
    Comparison("an output embedding alone is worse than a layer",
               "t2-embedding-alone", "t2", "above", "252.4 / 112.4"),
    Comparison("beside a layer it adds nothing", "t2-own-embedding", "t2", "same", "111.5 / 112.4"),
    Comparison("the last layer is a worse source", "t2-last", "t2", "above", "131.1 / 112.4"),
)  # fmt: skip


def show_variants(result: dict[str, Any], comparisons: tuple[Comparison, ...]) -> Shown:
    rows = []
    for name, measured in result["variants"].items():
        variant = VARIANTS[name]
        ppl = [Estimate.from_json(each) for each in measured["ppl"][:2]]
        joint = Estimate.from_json(measured["joint_ppl"][1])
        paper = None if variant.paper is None else " / ".join(map(str, variant.paper))
        cells = [f"{each.value:.3f} ({interval(each)})" for each in (*ppl, joint)]
        rows.append((variant.title, paper, *cells, f"{100 * measured['share']:.1f} %"))
    columns = ("variant", "paper: PPL_1 / PPL_2 / PPL_1:2", "PPL_1", "PPL_2", "PPL_1:2", "extra parameters")
    found = [comparison.claim(result) for comparison in comparisons]
    return Shown(
        (
            Table(f"Variants after {further.sentence(result['training'])}", columns, tuple(rows)),
            claims.table("Difference of head 2, nats a token on the same documents (paper: PPL_2)", found),
        ),
        claims.together(found),
    )


def _table_10(
    name: str, title: str, names: tuple[str, ...], compared: tuple[Comparison, ...], version: int = 1
) -> Experiment:
    return Experiment(
        name=name,
        title=title,
        paper="PPL_2 of variants on Pythia-70M: "
        + "; ".join(f"{each.words} ({each.paper})" for each in compared)
        + ".",
        rule="Each claim is a paired difference of head 2's nats a token with its 95 % interval over "
        f"documents. It holds if the interval is beyond {SAME} on the paper's side (for 'nothing': within "
        f"{SAME} on both), differs if beyond it on the other, and is left open else: two runs that differ "
        "only in the order of rows are apart too (see how much data). All must hold.",
        run=partial(measure_variants, names=names),
        show=partial(show_variants, comparisons=compared),
        depends=measures.LOSSES_DEPEND,
        version=version,
    )


TABLE_10 = _table_10(
    "table-10",
    "Table 10: how heads are trained",
    ("t2", "t2-random", "t2-low-rate", "t2-heads-only", "t2-two-layers", "t3", "t4"),
    TRAINING_COMPARISONS,
    version=2,
)
TABLE_10_SHAPES = _table_10(
    "table-10-shapes",
    "Table 10: output embeddings and sources",
    ("t2", "t2-embedding-alone", "t2-own-embedding", "t2-last"),
    SHAPE_COMPARISONS,
)
