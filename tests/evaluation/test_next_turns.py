"""chrF against hand-counted n-grams; numbers and names; replies beside threshold 1."""

import json

import numpy as np
import pytest
from command_line import run
from conftest import DIALOGUES, tiny_dynamo
from tables import table_for

from dynamo import Engine, SamplingOptions
from dynamo.evaluation import next_turns
from dynamo.evaluation.text_measures import Mentions, chrf_counts, chrf_score, mentions, names
from dynamo.training.trainer import save_model


def chrf(hypothesis, reference):
    return chrf_score(chrf_counts(hypothesis, reference)[None])[0]


def test_chrf_equals_the_formula_on_counted_ngrams():
    # abcd / abxd: common 3 of 4 letters, 1 (ab) of 3 pairs, none of 2 triples, none of 1 of four letters.
    precision = recall = (3 / 4 + 1 / 3 + 0 + 0) / 4
    assert chrf("abcd", "abxd") == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))
    # aab / ab: letters 2 of 3 and of 2 (a counts twice in one text, once in both), pairs 1 of 2 and of 1;
    # the second text has no triple.
    precision, recall = (2 / 3 + 1 / 2) / 2, (2 / 2 + 1 / 1) / 2
    assert chrf("aab", "ab") == pytest.approx(100 * 5 * precision * recall / (4 * precision + recall))


def test_chrf_looks_at_case_and_not_at_spaces():
    assert chrf("At half past seven", "At  half past\nseven") == pytest.approx(100)
    assert chrf("AT", "at") == 0
    assert chrf("", "at") == chrf("at", "") == 0
    near, far = (
        chrf("a table for two", "a table for ten"),
        chrf("my bank account", "a table for ten"),
    )
    assert 100 > near > far > 0


def test_pooled_chrf_adds_counts_before_it_divides():
    pairs = [("abcd", "abxd"), ("aab", "ab")]
    pooled = sum(chrf_counts(*pair) for pair in pairs)
    # Order by order: common, of the hypotheses, of the references.
    assert pooled.reshape(3, 6)[:, :4].tolist() == [[5, 2, 0, 0], [7, 5, 3, 1], [6, 4, 2, 1]]
    precision, recall = (5 / 7 + 2 / 5) / 4, (5 / 6 + 2 / 4) / 4
    assert chrf_score(pooled[None])[0] == pytest.approx(
        100 * 5 * precision * recall / (4 * precision + recall)
    )


def test_a_name_is_a_run_of_capitals_that_does_not_begin_a_sentence():
    assert names("Your table at Sino in San Jose is booked.") == ["Sino", "San Jose"]
    assert names("Sure. The weather? I'd say: Rain! In Oakland, I think") == ["Oakland"]
    assert names("the Hilton, Palo Alto") == ["Hilton", "Palo Alto"]


def test_mentions_are_found_as_whole_numbers_and_words():
    context = "A table for 2 at 7:30 in san jose, please"
    assert mentions("It is at 7:30 in San Jose for 2.", context) == Mentions(2, 2, 1, 1)
    # 30 and Jos are only parts of what stands there.
    assert mentions("It is at 30 in Jos", context) == Mentions(0, 1, 0, 1)
    assert mentions("hello", context) == Mentions(0, 0, 0, 0)


def test_places_are_assistant_turns_with_turns_before_them():
    found = next_turns.places(DIALOGUES, 10)
    assert len(found) == 2
    for place in found:
        dialogue = next(each for each in DIALOGUES if each[0] == place.turns[0])
        assert dialogue[len(place.turns)] == {"role": "assistant", "content": place.true}
    assert len(next_turns.places(DIALOGUES, 1)) == 1
    with pytest.raises(ValueError, match="assistant"):
        next_turns.places([DIALOGUES[0][:1]], 3)


@pytest.fixture(scope="module")
def rows(tokenizer):
    engine = Engine(tiny_dynamo(seed=2), table_for(tokenizer), tokenizer)
    places = next_turns.places(DIALOGUES, 2)
    return engine, places, next_turns.answer_places(engine, tokenizer, places, [0.0], max_new_tokens=9)


def test_true_turns_have_full_chrf_and_the_shares_of_their_own_mentions(rows):
    _, places, (true, *_) = rows
    assert true.measures["chrf"].value == 100 and true.threshold is None
    counted = [mentions(place.true, place.context) for place in places]
    numbers = sum(each.numbers_found for each in counted) / max(1, sum(each.numbers for each in counted))
    assert true.measures["numbers_in_context"].value == pytest.approx(numbers)


def test_every_threshold_stands_beside_threshold_one(rows, tokenizer):
    engine, places, (_, one, zero) = rows
    assert (one.threshold, zero.threshold) == (1.0, 0.0) and one.against_one is None
    assert one.tokens_per_forward == 1
    prompt = next_turns.encode_chat(tokenizer, places[0].turns)
    texts = {}
    for threshold in (0.0, 1.0):
        steps = engine.stream(prompt, SamplingOptions(threshold=threshold), 9, seed=0)
        ids = [token for step in steps for token in step.tokens]
        texts[threshold] = tokenizer.decode(ids, skip_special_tokens=True)
    only = next_turns.answer_places(engine, tokenizer, places[:1], [0.0], max_new_tokens=9)
    scores = [chrf(texts[threshold], places[0].true) for threshold in (1.0, 0.0)]
    assert [row.measures["chrf"].value for row in only[1:]] == pytest.approx(scores)
    assert only[2].against_one["chrf"].value == pytest.approx(scores[1] - scores[0])


def test_differences_are_paired_over_places():
    """Two lanes that differ by the same on places of very different level: no doubt about the difference."""
    level = np.array([[10.0 * (i + 1), 100.0] for i in range(8)])
    own, one = np.zeros((8, next_turns._COLUMNS)), np.zeros((8, next_turns._COLUMNS))
    own[:, next_turns._NAMES], one[:, next_turns._NAMES] = level, level - [5.0, 0.0]
    difference = next_turns._differences(own, one)["names_in_context"]
    assert (difference.low, difference.high) == pytest.approx((0.05, 0.05))


def test_exact_mode_has_no_threshold_to_move(rows, tokenizer):
    engine, places, _ = rows
    with pytest.raises(ValueError, match="exact"):
        next_turns.answer_places(engine, tokenizer, places, [0.5], SamplingOptions(exact=True))


def test_audit_of_held_out_dialogues_prints_what_is_measured(tmp_path, capsys, tokenizer):
    save_model(tiny_dynamo(seed=2), tokenizer, tmp_path / "model")
    table_for(tokenizer).save(tmp_path / "model" / "cooccurrence.safetensors")
    data = tmp_path / "dialogues.jsonl"
    data.write_text("\n".join(json.dumps({"messages": turns}) for turns in DIALOGUES))
    arguments = ["audit", "--data", data, "--model", tmp_path / "model", "--max-new-tokens", 9]
    code, result = run(capsys, *arguments, "--thresholds", 0, "--limit", 0)
    assert code == 0 and result["places"] == 2
    engine = Engine(tiny_dynamo(seed=2), table_for(tokenizer), tokenizer)
    expected = next_turns.answer_places(
        engine, tokenizer, next_turns.places(DIALOGUES, 2), [0.0], max_new_tokens=9
    )
    assert result["replies"] == json.loads(json.dumps([row.to_json() for row in expected]))
    assert run(capsys, *arguments, "--prompt", "Hello")[0] == 2, "one source at a time"
    assert run(capsys, *arguments, "--limit", -1)[0] == 2
