"""The inspector's arithmetic: what the sampler would have done at another threshold."""

from __future__ import annotations

import re

import numpy as np
import pytest
from cards import RUN, fill, joint

from dynamo.sampling.candidates import Candidates
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.records import StepRecord
from dynamo.sampling.sampler import Context, choose
from dynamo.ui.components import script
from dynamo.ui.server.store import RunStore


@pytest.mark.parametrize("adaptive", [False, True])
def test_what_if_agrees_with_the_sampler(arithmetic, adaptive):
    rng = np.random.default_rng(8)
    cases, expected = [], []
    for _ in range(60):
        f = -np.sort(-rng.dirichlet(np.full(6, 0.25), 3), axis=1)
        candidates = Candidates(np.arange(18).reshape(3, 6), f)
        at, asked = rng.uniform(0.05, 0.95, 2)
        decisions = [
            choose(
                candidates,
                Context(18),
                None,
                SamplingOptions(threshold=threshold, adaptive=adaptive, repetition_penalty=1.0),
                0.5,
            )
            for threshold in (at, asked)
        ]
        seen = decisions[0]
        line = {"ids": list(seen.tokens), "backoffs": [list(entry) for entry in seen.backoffs]}
        cases.append([line | {"best": seen.joint.best}, asked])
        expected.append(decisions[1].order)
    got = arithmetic("args[0].map(([pass, asked]) => decisionAt(triesOf(pass, null), asked))", cases)
    certain = [decision["certain"] for decision in got]
    assert 30 < sum(certain) < 60
    for decision, order in zip(got, expected, strict=True):
        assert decision["order"] == order if decision["certain"] else decision["order"] >= order


def test_no_function_of_the_inspector_hides_another():
    names = re.findall(r"^(?:async )?(?:function|const|let|class) (\w+)", script("inspector"), re.MULTILINE)
    assert len(names) > 50
    assert len(names) == len(set(names))


def test_the_least_value_of_a_joint_line_is_enough(arithmetic):
    """Recordings of before `best` was written have it in their largest chunk."""
    values, _ = fill(RunStore(), RUN, [StepRecord((0, 10), 2, 0.01, joint=joint({(0, 0): 0.7, (1, 1): 0.3}))])
    tries = arithmetic(
        "(({ pass, joint }) => { delete pass.best; return triesOf(pass, joint); })(JSON.parse(args[0]))",
        values[0],
    )
    assert tries[0]["best"] == pytest.approx(0.7, rel=1e-3)
