"""Verdicts on measured differences: a 95 % interval decides, or leaves the question open.

"cannot be tested here" stands both for what is missing and for what runs of this size leave open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dynamo.common.statistics import Estimate
from dynamo.reproduction.estimates import signed
from dynamo.reproduction.experiment import Finding, Table, Verdict


@dataclass(frozen=True)
class Claim:
    """words: what is claimed; paper: what it found; difference: the number that decides."""

    words: str
    paper: str
    difference: Estimate
    verdict: Verdict


def below(difference: Estimate, margin: float = 0.0) -> Verdict:
    """Holds if the interval is below -margin, differs if above the margin, else it is undecided."""
    if difference.high < -margin:
        return "holds"
    return "differs" if difference.low > margin else "cannot be tested here"


def above(difference: Estimate, margin: float = 0.0) -> Verdict:
    return below(Estimate(-difference.value, -difference.high, -difference.low), margin)


def within(difference: Estimate, margin: float) -> Verdict:
    """Holds if the interval is within the margin on both sides of 0, differs if it is outside."""
    if -margin < difference.low and difference.high < margin:
        return "holds"
    outside = difference.low > margin or difference.high < -margin
    return "differs" if outside else "cannot be tested here"


def together(claims: Iterable[Claim]) -> Finding:
    """Differs if one claim does, holds if all do; the sentence counts them and names those that do not."""
    claims = list(claims)
    verdicts = [claim.verdict for claim in claims]
    strictest: tuple[Verdict, ...] = ("differs", "cannot be tested here", "holds")
    whole = next((verdict for verdict in strictest if verdict in verdicts), "holds")
    sentence = f"{verdicts.count('holds')} of {len(claims)} claims hold."
    against = [claim.words for claim in claims if claim.verdict == "differs"]
    unsure = [claim.words for claim in claims if claim.verdict == "cannot be tested here"]
    if against:
        sentence += f" Not so here: {'; '.join(against)}."
    if unsure:
        sentence += f" At this size it cannot be told whether {'; '.join(unsure)}."
    return Finding(whole, sentence)


def table(caption: str, claims: Iterable[Claim]) -> Table:
    rows = tuple(
        (claim.words, claim.paper, *signed(claim.difference), _in_table(claim.verdict)) for claim in claims
    )
    return Table(caption, ("claim", "paper", "difference", "95 %", "verdict"), rows)


def _in_table(verdict: Verdict) -> str:
    return "cannot be told at this size" if verdict == "cannot be tested here" else verdict
