"""How many tokens: two to five token heads, their speed, their quality and what they cost.

The paper builds up to four tokens on Pythia-70M and finds its same-quality speed-up still rising. Here
replies tell: tokens a forward pass at the default threshold, and what the pair's base thinks of the text.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

from dynamo.reproduction import claims, further, measures, variants
from dynamo.reproduction.claims import Claim
from dynamo.reproduction.estimates import read, with_interval
from dynamo.reproduction.experiment import Experiment, Finding, Shown, Table
from dynamo.reproduction.workspace import Workspace

NAMES = ("t2", "t3", "t4", "t5")


def measure_num_heads(workspace: Workspace) -> dict[str, Any]:
    models = {name: partial(variants.model_of, workspace, name) for name in NAMES}
    result = variants.measure_variants(workspace, NAMES)
    answers = {name: measures.answers(workspace, name, model) for name, model in models.items()}
    base = partial(further.with_heads, workspace, num_token_heads=1)
    return {
        **result,
        "table_order": further.long_table(workspace).order,
        "replies": {name: each.to_json() for name, each in answers.items()},
        "base_replies": measures.answers(workspace, "base", base).to_json(),
        **{
            gain: {
                f"{more} - {fewer}": getattr(answers[more], gain)(answers[fewer]).to_json()
                for fewer, more in pairwise(NAMES)
            }
            for gain in ("faster", "drift")
        },
    }


def show_num_heads(result: dict[str, Any]) -> Shown:
    rows = [_row("base, one token", None, result["base_replies"])]
    for name, measured in result["variants"].items():
        rows.append(_row(variants.VARIANTS[name].title, measured, result["replies"][name]))
    columns = ("model", "extra parameters", "PPL_1 .. PPL_n", "PPL_1:n", "tokens a pass", "nats a token",
               "below 1 %")  # fmt: skip
    faster, drift = read(result["faster"]), read(result["drift"])
    found, quality = [], []
    for fewer, more in pairwise(NAMES):
        key, paper = f"{more} - {fewer}", "3.89 / 3.00" if more == "t4" else "-"
        words = f"{more.upper()} emits more tokens a pass than {fewer.upper()}"
        found.append(Claim(words, paper, faster[key], claims.above(faster[key])))
        words = f"{more.upper()} drifts no further from the base than {fewer.upper()}"
        quality.append(Claim(words, "-", drift[key], claims.below(drift[key])))
    caption = (
        f"Two to five tokens after {further.sentence(result['training'])}; replies at the default threshold, "
        f"under the base; table of tuples of up to {result['table_order']}"
    )
    finding = claims.together([*found, *quality])
    nats = ", ".join(
        f"{name.upper()} {result['replies'][name]['nats_per_token']['value']:.2f}" for name in NAMES
    )
    return Shown(
        (
            Table(caption, columns, tuple(rows)),
            claims.table("Tokens a pass, on the same prompts (paper: same-quality speed-ups)", found),
            claims.table("Nats a token of the replies under the base, on the same prompts", quality),
        ),
        Finding(
            finding.verdict,
            f"{finding.sentence} Nats a token of the replies under the base: {nats}; its own replies "
            f"{result['base_replies']['nats_per_token']['value']:.2f}.",
        ),
    )


def _row(title: str, measured: dict[str, Any] | None, replies: dict[str, Any]) -> tuple[Any, ...]:
    unlikely = replies["share_below_1_percent"]["value"]
    cells = [with_interval(replies[name]) for name in ("tokens_per_forward", "nats_per_token")]
    heads = (None, None, None)
    if measured is not None:
        heads = (
            f"{measured['extra']:,.0f} ({100 * measured['share']:.1f} %)",
            " / ".join(f"{each['value']:.2f}" for each in measured["ppl"]),
            f"{measured['joint_ppl'][-1]['value']:.2f}",
        )
    return (title, *heads, *cells, f"{100 * unlikely:.1f} %")


HOW_MANY = Experiment(
    name="how-many-tokens",
    title="Open question: how many tokens?",
    paper="Same-quality speed-up of 3.00 with three tokens and 3.89 with four on Pythia-70M, each further "
    "head one more decoder layer; none has five.",
    rule="Paired differences over the same prompts, 95 % intervals: tokens a forward pass must rise with "
    "each head (interval above 0), nats a token of the replies under the base must not (differs if the "
    "interval is above 0, holds if below). All must hold, as the paper's speed-ups are of the same quality.",
    run=measure_num_heads,
    show=show_num_heads,
    depends=("train", "validation", "documents", "prompts", "replies", "steps", "seed"),
    version=2,
)
