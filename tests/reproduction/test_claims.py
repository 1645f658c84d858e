"""Claims of the paper against intervals: what holds, what differs, and what cannot be told."""

import pytest

from dynamo.common.statistics import Estimate
from dynamo.reproduction import claims


@pytest.mark.parametrize(
    ("low", "high", "below", "above", "same"),
    [
        (-0.3, -0.2, "holds", "differs", "differs"),
        (-0.04, -0.01, "holds", "differs", "holds"),
        (-0.01, 0.02, "cannot be tested here", "cannot be tested here", "holds"),
        (-0.2, 0.2, "cannot be tested here", "cannot be tested here", "cannot be tested here"),
        (0.01, 0.2, "differs", "holds", "cannot be tested here"),
    ],
)
def test_the_interval_decides(low, high, below, above, same):
    estimate = Estimate((low + high) / 2, low, high)
    assert claims.below(estimate) == below
    assert claims.above(estimate) == above
    assert claims.within(estimate, 0.05) == same


def test_a_margin_leaves_small_differences_open():
    small, large = Estimate(0.03, 0.02, 0.04), Estimate(0.3, 0.2, 0.4)
    assert (claims.above(small, 0.05), claims.below(small, 0.05)) == ("cannot be tested here",) * 2
    assert (claims.above(large, 0.05), claims.below(large, 0.05)) == ("holds", "differs")


def claim(words, verdict):
    return claims.Claim(words, "-", Estimate(0.0, 0.0, 0.0), verdict)


def test_claims_hold_only_together():
    held, unsure, against = claim("a", "holds"), claim("b", "cannot be tested here"), claim("c", "differs")
    assert claims.together([held, held]).verdict == "holds"
    assert claims.together([held, unsure]).verdict == "cannot be tested here"
    finding = claims.together([held, unsure, against])
    assert finding.verdict == "differs"
    assert finding.sentence == (
        "1 of 3 claims hold. Not so here: c. At this size it cannot be told whether b."
    )
