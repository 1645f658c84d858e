"""Verdicts on measured differences: an interval decides, and says so where it cannot.

"cannot be tested here" is the report's word for both: what is missing, and what runs of this size leave open.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from dynamo.common.statistics import Estimate
from dynamo.reproduction.experiment import Finding, Table, Verdict


@dataclass(frozen=True)
class Claim:
    """words: what would be so; paper: what it found; difference: the number that decides."""

    words: str
    paper: str
    difference: Estimate
    verdict: Verdict


def below(difference: Estimate, margin: float = 0.0) -> Verdict:
    """Holds if the interval is below -margin, differs if above the margin, cannot be told else."""
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
    whole: Verdict = "holds"
    if "differs" in verdicts:
        whole = "differs"
    elif "cannot be tested here" in verdicts:
        whole = "cannot be tested here"
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
        (claim.words, claim.paper, *written(claim.difference), _in_table(claim.verdict)) for claim in claims
    )
    return Table(caption, ("claim", "paper", "difference", "95 %", "verdict"), rows)


def written(estimate: Estimate, digits: int = 4) -> tuple[str, str]:
    """A signed difference and its interval."""
    return f"{estimate.value:+.{digits}f}", interval(estimate, f"+.{digits}f")


def interval(estimate: Estimate, form: str = ".4g") -> str:
    return f"{estimate.low:{form}} to {estimate.high:{form}}"


def _in_table(verdict: Verdict) -> str:
    return "cannot be told at this size" if verdict == "cannot be tested here" else verdict
