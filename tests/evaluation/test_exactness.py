"""The check that exact mode speaks as the base does: it passes, and sees a mode that does not."""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from dynamo.data.prompts import read_prompts
from dynamo.decoding import sequence
from dynamo.decoding.engine import Engine
from dynamo.evaluation import exactness
from dynamo.evaluation.exactness import first_head, fits, p_value
from dynamo.loading import load
from dynamo.sampling.exact import propose


@pytest.fixture(scope="module")
def pair():
    return load("embedded", device="cpu")


@pytest.fixture(scope="module")
def prompt(pair):
    """Its second token is drafted nearly always, its third about every second time."""
    return read_prompts(None, pair.tokenizer, 3)[-1]


def test_second_and_third_tokens_fit_the_first_head(pair, prompt):
    found = fits(pair, prompt, 800)
    assert [fit.place for fit in found] == [2, 3] and found[0].draws == 800 and found[1].draws > 400
    assert min(fit.p_value for fit in found) > 1e-3
    assert all(0.2 < fit.drafted < 1 for fit in found), "the case must exercise both"


def test_drafts_that_are_made_or_not_by_what_was_drawn_are_seen(pair, prompt, monkeypatch):
    """The forbidden rule: drafts are drawn first, then only unlikely ones are made."""

    def surprising_drafts_only(*arguments, **named):
        drafts = propose(*arguments, **named)
        return tuple(itertools.takewhile(lambda d: d.q[d.ids == d.token][0] < 0.5, drafts))

    monkeypatch.setattr(sequence, "propose", surprising_drafts_only)
    assert min(fit.p_value for fit in fits(pair, prompt, 800)) < 1e-6


def test_the_streams_are_the_engines(pair, prompt):
    """Remembered passes lead to the texts that passes lead to."""
    engine = Engine(pair.dynamo, pair.table, pair.tokenizer)
    stock, options = pair.dynamo.to_base(shared=True).eval(), replace(pair.options, exact=True)
    beginning = []
    for _ in range(2):
        expected = first_head(stock, engine, [*prompt, *beginning], options)
        beginning.append(max(expected, key=expected.__getitem__))
    first, second = beginning
    places = exactness._places(engine, prompt, beginning)
    drawn = [tokens for tokens, _ in exactness._streams(engine, prompt, options, places, first, second, 20)]
    texts = []
    for seed in itertools.count():
        tokens = [token for step in engine.stream(prompt, options, 4, seed) for token in step.tokens]
        texts += [tokens] if tokens[0] == first else []
        if len(texts) == 20:
            break
    assert [tokens[:2] for tokens in drawn] == [tokens[:2] for tokens in texts]
    third = [(a[2], b[2]) for a, b in zip(drawn, texts, strict=True) if a[1] == second and len(a) > 2]
    assert third and all(a == b for a, b in third)


def test_the_command_says_whether_all_of_them_fit(capsys):
    assert exactness.main(["--model", "embedded", "--limit", "1", "--draws", "60"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tests"] == 2 and report["passed"] and len(report["p_values"]) == 2


def test_a_p_value_is_that_of_pearsons_test():
    expected = {1: 0.5, 2: 0.3, 3: 0.2}
    draws = np.random.default_rng(0).choice([1, 2, 3], 1000, p=[0.5, 0.3, 0.2])
    counts = {i: int((draws == i).sum()) for i in (1, 2, 3)}
    own = stats.chisquare(list(counts.values()), [500, 300, 200]).pvalue
    assert p_value(counts, expected) == pytest.approx(own) and own > 1e-3
    assert p_value({1: 400, 2: 350, 3: 250}, expected) < 1e-6
    assert p_value({1: 500, 2: 300, 3: 199, 4: 1}, expected) == 0
