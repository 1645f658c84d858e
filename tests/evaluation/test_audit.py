import json
import math

import pytest
import torch
from conftest import tiny_base

from dynamo.evaluation.audit import Audit, audit
from dynamo.evaluation.text_measures import distinct, repeated

PROMPT = [5, 6, 7]


@pytest.mark.parametrize(
    "tokens, expected",
    [
        ([], (0, 0)),
        ([1, 2, 3], (0, 0)),
        ([1, 2, 3, 4], (0, 1)),
        ([1, 2, 1, 2, 1, 2, 1], (2, 4)),
        ([7] * 9, (5, 6)),
    ],
)
def test_repeated_counts_four_grams_seen_before(tokens, expected):
    assert repeated(tokens) == expected


def test_distinct_counts_bigrams_of_all_texts_together():
    assert distinct([[1, 2, 3], [2, 3, 4], [1]]) == (3, 4)
    assert distinct([]) == (0, 0)


def test_shares_of_an_audit_by_hand():
    log_p = tuple(math.log(p) for p in (0.5, 0.009, 0.25, 0.02, 0.001))
    result = Audit(log_p, (0, 60, 50, 49, 900), (8, 8, 8, 8, 8))
    assert result.unlikely == (False, True, False, False, True) and result.unlikely_share == 0.4
    assert result.outside == (False, True, True, False, True) and result.outside_share == 0.6
    assert result.repetition == 0.5
    written = json.loads(json.dumps(result.to_json()))
    assert written["p"] == pytest.approx([0.5, 0.009, 0.25, 0.02, 0.001])
    assert written["rank"] == [0, 60, 50, 49, 900]
    assert written["nats_per_token"] == pytest.approx(-sum(log_p) / 5)
    assert (written["share_below_1_percent"], written["share_outside_top_k"]) == (0.4, 0.6)
    assert (written["repetition"], written["top_k"], written["tokens"]) == (0.5, 50, 5)


def test_tokens_drawn_from_the_top_k_are_inside_it():
    base = tiny_base()
    ids = list(PROMPT)
    for rank in (0, 4, 2, 5, 1):
        with torch.no_grad():
            ids.append(int(base(torch.tensor([ids])).logits[0, -1].argsort(descending=True)[rank]))
    result = audit(base, PROMPT, ids[3:], top_k=5)
    assert result.ranks == (0, 4, 2, 5, 1)
    assert result.outside == (False, False, False, True, False)
    assert result.tokens == tuple(ids[3:])


def test_texts_longer_than_the_models_positions_are_read_in_windows():
    """Inside the first window nothing changes; later tokens see the last positions alone."""
    base = tiny_base(max_position_embeddings=16)
    reply = torch.randint(10, 300, (40,), generator=torch.Generator().manual_seed(0)).tolist()
    lengths = []
    handle = base.register_forward_pre_hook(lambda *call: lengths.append(call[1][0].shape[1]))
    result = audit(base, PROMPT, reply)
    handle.remove()
    assert len(result.ranks) == len(result.log_probabilities) == 40 and max(lengths) == 16
    assert result.log_probabilities[:13] == pytest.approx(audit(base, PROMPT, reply[:13]).log_probabilities)
    with torch.no_grad():  # the text has 43 ids, so its last window starts at id 27
        window = torch.tensor([[*PROMPT, *reply][27:]])
        last = base(window).logits[0, -2].log_softmax(-1)[reply[-1]]
    assert result.log_probabilities[-1] == pytest.approx(last.item(), abs=1e-5)


def test_long_prompt_loses_its_oldest_tokens():
    base = tiny_base(max_position_embeddings=16)
    prompt = list(range(20, 60))
    result = audit(base, prompt, [7, 8])
    assert result.log_probabilities == pytest.approx(audit(base, prompt[-14:], [7, 8]).log_probabilities)


@pytest.mark.parametrize("prompt, reply, words", [([], [5], "prompt: "), ([5], [300], "0 to 299, got 300")])
def test_unusable_input_is_refused(prompt, reply, words):
    with pytest.raises(ValueError, match=words):
        audit(tiny_base(), prompt, reply)
