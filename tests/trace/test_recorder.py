import numpy as np
import pytest
from scipy.stats import sem

from dynamo.data.text import IncrementalDecoder
from dynamo.sampling.records import BackOff, StepRecord
from dynamo.trace.ndjson import End
from dynamo.trace.recorder import Recorder, RunCounts

RECORDS = [
    StepRecord((5, 6, 7), 3, 0.5, prefill=True),
    StepRecord((8,), 1, 0.25, backoffs=(BackOff(3, "threshold", 0.1, 0.2), BackOff(2, "mask", 0.0, 0.4))),
    StepRecord((9, 3), 3, 0.125),
]


class Letters:
    """Ids to letters; an end has no text, and something is kept back."""

    stopped = False

    def push(self, ids):
        return ["" if token == 3 else "abcdefghij"[token] for token in ids]

    def flush(self):
        return "?"


def test_a_run_is_folded_with_the_prompts_pass_apart_from_decoding():
    run = RunCounts.fold(iter(RECORDS))
    assert run.tokens == [5, 6, 7, 8, 9, 3] and run.orders == [3, 1, 3]
    assert run.backoffs == ["3:threshold", "2:mask"] and run.backed_off == 1
    assert (run.passes, run.decode_passes, run.decode_tokens) == (3, 2, 3)
    assert (run.decode_seconds, run.prefill_seconds, run.seconds) == (0.375, 0.5, 0.875)
    assert run.tokens_per_forward == 2
    assert RunCounts.fold(RECORDS[:1]).tokens_per_second is None, "nothing was decoded after the prompt"


def test_a_pass_that_was_held_up_counts_as_one_slow_pass():
    """Beside a busy program one pass of 38 took a second, and DynaMo was shown as ten times as fast."""
    run = RunCounts.fold([RECORDS[0], *(StepRecord((1, 2), 2, seconds) for seconds in [0.01] * 24 + [1.0])])
    speeds = [100] * 24 + [1]
    assert run.pass_speed == (
        25,
        pytest.approx(np.mean(speeds)),
        pytest.approx(sem(speeds) / np.mean(speeds)),
    )
    assert run.tokens_per_second == pytest.approx(2 * np.mean(speeds))
    run.timings = [0.01] * 25
    assert run.tokens_per_second == pytest.approx(2 * 100), "timed again"


def test_the_lines_of_a_run_count_as_its_records_did():
    recorder = Recorder(Letters(), frozenset([3]))
    lines = [recorder.take(record) for record in RECORDS]
    assert RunCounts.fold(lines) == RunCounts.fold(RECORDS)


def test_text_is_marked_where_a_pass_decided_on_a_chunk():
    recorder = Recorder(Letters(), frozenset([3]))
    assert "".join(recorder.take(record).marked for record in RECORDS) == "[fgh]i[j]"
    assert recorder.text == "fghij"
    assert recorder.end() == recorder.end("cancelled") == End("eos", "?"), "an end is made once"
    assert recorder.text == "fghij?"


def test_a_text_that_a_stop_string_ended_says_so(tokenizer):
    """Whatever the last token is; its text is cut where the string begins."""
    ids = tokenizer("at half past", add_special_tokens=False)["input_ids"]
    record = StepRecord((*ids, tokenizer.eos_token_id), 1, 0.1)
    for stop, end, text in ((["lf"], "stop", "at ha"), (["never"], "eos", "at half past")):
        recorder = Recorder(IncrementalDecoder(tokenizer, stop), frozenset([tokenizer.eos_token_id]))
        recorder.take(record)
        assert (recorder.end().reason, recorder.text) == (end, text)
