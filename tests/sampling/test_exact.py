"""Exact mode against exact probabilities: the one-token loop's, worked out by the oracle for every prefix."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from engines import tokens_of
from oracle import choose as oracle_choose
from scipy import stats
from tablemodel import END, START, VOCAB, TableCorrelator, engine, logits_after, table

from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.exact import Draft, propose, verify
from dynamo.sampling.options import SamplingOptions
from dynamo.sampling.sampler import Context

__all__ = ["engine", "table"]  # fixtures
MODES = [
    {},
    {"exact_threshold": 0.3},
    {"mask_strength": 0.0},
    {"repetition_penalty": 1.6, "exact_threshold": 0.4, "mask_strength": 0.5},
    {"top_k": 3, "temperature": 0.6},
    {"top_k": 3, "exact_vocabulary": 4},
    {"max_order": 2},
    {"correction": "smoothed"},
    {"correction": "correlator", "repetition_penalty": 1.3},
]


def first_head(prefix, options) -> dict[int, float]:
    """The oracle's order-1 distribution after a prefix."""
    alone = replace(options, threshold=1.0)
    decision = oracle_choose(logits_after(prefix)[:1], prefix, None, alone, 0.5, special_ids={END})
    return {token: share for (token,), share in decision.cells.items()}


def text_probabilities(options, length) -> dict[tuple[int, ...], float]:
    done, open_ = {}, {(): 1.0}
    for _ in range(length):
        longer = {}
        for text, probability in open_.items():
            for token, share in first_head([*START, *text], options).items():
                (done if token == END else longer)[(*text, token)] = probability * share
        open_ = longer
    return done | open_


def fit_of_texts(engine, options, draws) -> float:
    """p-value of whole texts of up to four tokens against the first head's, the rare ones pooled."""
    expected = text_probabilities(options, 4)
    assert sum(expected.values()) == pytest.approx(1)
    counts, kept, rejected = dict.fromkeys(expected, 0), 0, 0
    for seed in range(draws):
        steps = list(engine.stream(START, options, 4, seed))
        counts[tuple(tokens_of(steps))] += 1
        kept += sum(len(step.tokens) > 1 for step in steps)
        rejected += sum(len(step.rejected) for step in steps)
    assert kept > draws / 15 and rejected > draws / 15, "the case must exercise both"
    common = [text for text, p in expected.items() if p * draws >= 5]
    assert len(common) >= 10
    observed = np.array([counts[text] for text in common])
    wanted = np.array([expected[text] for text in common]) * draws
    return stats.chisquare(
        [*observed, draws - observed.sum()], [*wanted, max(draws - wanted.sum(), 1e-9)]
    ).pvalue


@pytest.mark.parametrize("changes", MODES, ids=str)
@pytest.mark.slow
def test_whole_texts_have_the_first_heads_distribution(changes, engine):
    options = SamplingOptions(**{"exact": True, "repetition_penalty": 1.0, "temperature": 1.0, **changes})
    assert fit_of_texts(engine, options, 800) > 1e-3


@pytest.mark.slow
def test_a_length_that_depended_on_the_drawn_draft_would_bias_the_text(engine, monkeypatch):
    """The forbidden rule: drafts are drawn first, then only unlikely ones are made. The same test sees it."""
    import dynamo.decoding.sequence

    def surprising_drafts_only(*arguments, **named):
        drafts = propose(*arguments, **named)
        return tuple(itertools.takewhile(lambda d: d.q[d.ids == d.token][0] < 0.5, drafts))

    monkeypatch.setattr(dynamo.decoding.sequence, "propose", surprising_drafts_only)
    options = SamplingOptions(exact=True, repetition_penalty=1.0, temperature=1.0)
    assert fit_of_texts(engine, options, 800) < 1e-6


def propose_with(uniforms, candidates, token, table, options, most=2):
    context = Context(VOCAB, (END,))
    context.add(START)
    return propose(candidates, token, table, context, options, iter(uniforms).__next__, most)


@pytest.mark.parametrize("changes", MODES, ids=str)
@pytest.mark.slow
def test_whether_there_is_a_draft_does_not_depend_on_the_draft_that_is_drawn(changes, table):
    """Only the joint and the tokens ahead of a place count: all uniforms find a draft there, or none."""
    options = SamplingOptions(exact=True, **changes)
    lengths = set()
    places = np.linspace(0, 0.999, 6)
    for prefix in itertools.product(range(VOCAB), repeat=2):
        candidates = TableCorrelator().attach(top_candidates(logits_after(prefix), options))
        for token in candidates.ids[0].tolist():
            drawn = [
                propose_with(uniforms, candidates, token, table, options)
                for uniforms in itertools.product(places, repeat=2)
            ]
            assert len({len(drafts) > 0 for drafts in drawn}) == 1
            after = {}
            for drafts in drawn:
                after.setdefault(drafts[0].token if drafts else None, set()).add(len(drafts))
                lengths.add(len(drafts))
            assert all(len(found) == 1 for found in after.values())
    free = options.exact_threshold == 0 and (options.mask_strength == 0 or options.correction != "table")
    assert lengths == ({2} if free else {0, 1, 2} if options.max_order == 3 else {0, 1})


def test_drafts_are_drawn_from_the_q_they_carry(table):
    """And q is the joint's conditional given the tokens before, worked out here from the whole grids."""
    options = SamplingOptions(exact=True, temperature=1.0, repetition_penalty=1.3)
    candidates = top_candidates(logits_after(START), options)
    token = int(candidates.ids[0, 0])

    def joint_of(*cell):
        f = [candidates.f[h][candidates.ids[h] == t][0] for h, t in enumerate(cell)]
        repeats = sum(t != END and (t in START or t in cell[:i]) for i, t in enumerate(cell))
        return np.prod(f) * float(table.ratio(np.array(cell))) / 1.3**repeats

    first = np.array([joint_of(token, a) for a in range(VOCAB)])
    first /= first.sum()
    wanted = np.zeros((VOCAB, VOCAB + 1))  # the last column: no second draft
    for a in range(VOCAB):
        second = np.array([joint_of(token, a, b) for b in range(VOCAB)])
        wanted[a] = first[a] * np.array([*second / second.sum(), 0] if second.any() else [0] * VOCAB + [1])
    counts = np.zeros_like(wanted)
    rng = np.random.default_rng(0)
    for uniforms in rng.random((5000, 2)):
        drafts = propose_with(uniforms, candidates, token, table, options)
        place = [VOCAB] * 2
        for i, draft in enumerate(drafts):
            q = np.zeros(VOCAB)
            q[draft.ids] = draft.q
            expected = first if i == 0 else wanted[place[0], :VOCAB] / wanted[place[0]].sum()
            np.testing.assert_allclose(q, expected, rtol=1e-9)
            place[i] = draft.token
        counts[tuple(place)] += 1
    possible = wanted > 0
    assert possible[:, VOCAB].any() and possible[:, :VOCAB].any(), "with and without a second draft"
    assert not counts[~possible].any()
    assert stats.chisquare(counts[possible], wanted[possible] * 5000).pvalue > 1e-3


def test_drafting_stops_where_the_next_draft_is_less_likely_than_exact_modes_own_threshold(table):
    """Those of any threshold are the first few of those drafted freely: as long as each place's likeliest
    token, after the drafts before it, reaches the threshold."""
    free = SamplingOptions(exact=True, threshold=1.0, temperature=1.0, mask_strength=0.0)
    candidates = top_candidates(logits_after([3, 1]), free)
    lengths = set()
    for token, u in itertools.product(candidates.ids[0].tolist(), np.linspace(0, 0.99, 7)):
        drafts = propose_with([u, 1 - u], candidates, token, table, free)
        one, two = drafts
        before = one.q[one.ids == one.token][0]
        chances = [one.q.max(), before * two.q.max()]
        for threshold in np.linspace(0.05, 0.95, 10):
            options = replace(free, exact_threshold=float(threshold))
            unlikely = [chance < threshold for chance in chances]
            made = propose_with([u, 1 - u], candidates, token, table, options)
            assert [d.token for d in made] == [d.token for d in drafts][: [*unlikely, True].index(True)]
            lengths.add(len(made))
    assert lengths == {0, 1, 2}


def test_acceptance_and_residual_by_hand():
    """p = (.5, .3, .2), q = (.2, .8, 0) of tokens 0 to 2; the draft, token 1, is kept with probability 3/8.

    What is left of p is (.3, 0, .2): token 0 below .6, token 2 above.
    """
    options = SamplingOptions(exact=True, temperature=1.0, repetition_penalty=1.0)
    logits = np.log([[0.5, 0.3, 0.2], [0.1, 0.1, 0.8]])
    draft = Draft(1, np.array([1, 0, 2]), np.array([0.8, 0.2, 0.0]))

    def outcome(*uniforms):
        verdict = verify(logits, (draft,), Context(3), options, iter(uniforms).__next__)
        return verdict.accepted, verdict.tokens, verdict.refused

    rejected = pytest.approx((0.3, 0.8))
    assert outcome(0.374, 0.0) == (1, (1, 2), None)
    assert outcome(0.376, 0.59) == (0, (0,), rejected)
    assert outcome(0.376, 0.61) == (0, (2,), rejected)


def test_a_draft_outside_the_first_heads_candidates_is_never_kept():
    options = SamplingOptions(exact=True, top_k=1, temperature=1.0)
    draft = Draft(2, np.array([2]), np.array([1.0]))
    verdict = verify(np.array([[3.0, 1.0, 2.9]] * 2), (draft,), Context(3), options, lambda: 0.0)
    assert (verdict.accepted, verdict.tokens) == (0, (0,))


def test_records_of_exact_mode_tell_what_was_drafted_kept_and_rejected(engine):
    options = SamplingOptions(exact=True, temperature=1.0)
    lengths = set()
    for seed in range(60):
        steps = list(engine.stream(START, options, 12, seed))
        for before, step in itertools.pairwise(steps):
            accepted = len(before.drafted) - len(step.rejected)
            assert before.drafted == (*step.tokens[:accepted], *step.rejected)
            assert len(step.tokens) == accepted + 1 or step.tokens[-1] == END
            assert step.exact and not step.backoffs and len(step.probabilities) == len(step.tokens) >= 1
            lengths.add(len(step.tokens))
        assert not steps[0].rejected and not steps[-1].drafted
    assert lengths == {1, 2, 3}


def test_joint_of_a_record_is_the_one_that_the_drafts_were_drawn_from(engine):
    options = SamplingOptions(exact=True, temperature=1.0)
    shown = [s for seed in range(20) for s in engine.stream(START, options, 12, seed) if s.drafted]
    assert len(shown) > 10
    for step in shown:
        assert step.joint.order == 1 + len(step.drafted)
        assert step.joint.values.sum() == pytest.approx(1)
        assert any(cell.tokens[: len(step.drawn)] == step.drawn for cell in step.joint.top(VOCAB**3))


def test_no_more_is_fed_than_the_limit_leaves_a_use_for(engine):
    for limit in range(1, 7):
        for seed in range(10):
            engine._decoder.fed.clear()
            tokens = tokens_of(engine.stream(START, SamplingOptions(exact=True), limit, seed))
            assert len(tokens) <= limit and (len(tokens) == limit or tokens[-1] == END)
            assert sum(engine._decoder.fed[-1:]) <= max(limit, len(START))


def test_an_accepted_end_of_text_is_the_last_token(engine):
    ended = 0
    for seed in range(300):
        steps = list(engine.stream(START, SamplingOptions(exact=True, temperature=1.0), 12, seed))
        tokens = tokens_of(steps)
        assert END not in tokens[:-1]
        ended += len(steps) > 1 and steps[-2].drafted[: len(steps[-1].tokens)] == steps[-1].tokens
    assert ended > 5, "some ends must have been drafts"


def test_residual_of_equal_distributions_falls_back_to_the_first_head():
    """Rounding can reject a draft although p equals q; something must be drawn all the same."""
    options = SamplingOptions(exact=True, temperature=1.0, repetition_penalty=1.0)
    logits = np.log([[0.5, 0.5]] * 2)
    head = top_candidates(logits[:1], options)
    draft = Draft(0, head.ids[0], head.f[0] * (1 + 1e-12))
    verdict = verify(logits, (draft,), Context(2), options, iter([1 - 1e-13, 0.1]).__next__)
    assert verdict.accepted == 0 and verdict.tokens[0] in (0, 1)
