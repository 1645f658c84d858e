from __future__ import annotations

import json

import pytest
from fakes import ANSWER, scripted_pair
from hypothesis import given
from hypothesis import strategies as st
from talks import SETTINGS, talk

from dynamo.data.text import encode_chat
from dynamo.sampling.options import SamplingOptions
from dynamo.trace.ndjson import read_runs
from dynamo.ui.compare.chat import LONGEST_CHAT, Chat, last_run
from dynamo.ui.compare.pair import AtThresholdOne, encode_messages
from dynamo.ui.compare.service import PageService

LINES = st.lists(st.text("ab é<|\n", max_size=12), min_size=1, max_size=9)


def test_each_lane_keeps_its_own_history():
    chat = talk(PageService(scripted_pair()), "hello", "for six", "thanks")
    assert len(chat) == 3
    for lane in ("base", "dynamo"):
        messages = chat.messages(lane)
        assert [message["role"] for message in messages] == ["user", "assistant"] * 3
        assert [message["content"] for message in messages[::2]] == ["hello", "for six", "thanks"]
        assert messages[1]["content"].replace(" ", "") == ANSWER.replace(" ", "")


def test_a_turn_is_asked_with_all_turns_before_it():
    asked = []
    pair = scripted_pair()
    encode = lambda messages, room: asked.append([m["content"] for m in messages]) or [0]  # noqa: E731
    talk(PageService(type(pair)(**{**vars(pair), "encode": encode})), "one", "two")
    assert asked[0] == asked[1] == ["one"]
    assert len(asked[2]) == 3 and asked[2][0] == "one" and asked[2][2] == "two"


def test_a_next_turn_continues_the_value_of_the_pane():
    """Gradio sends only what was appended to a value; a chat must not be sent whole with each turn."""
    service = PageService(scripted_pair())
    before = talk(service, "one")
    *_, view = service.answer(before, "two", SETTINGS)
    assert view.dynamo.startswith(before.wire("dynamo"))
    assert [run.header.prompt for run in read_runs(view.dynamo.splitlines())] == ["one", "two"]


def test_a_stopped_turn_is_closed_and_stays():
    chat = talk(PageService(scripted_pair()), "one")
    lines = chat.wire("dynamo").splitlines()
    stopped = "\n".join(lines[:3]) + "\n"
    again = Chat.read(stopped, stopped)
    assert again.wire("dynamo").splitlines()[-1] == '{"end":"cancelled"}'
    assert again.wire("dynamo").startswith(stopped)


def test_recordings_and_duels_are_no_part_of_a_chat(tmp_path):
    service = PageService(scripted_pair())
    path = tmp_path / "t.ndjson"
    path.write_text(talk(service, "one").wire("dynamo"), encoding="utf-8")
    shown = service.load(path)
    assert read_runs(shown.dynamo.splitlines())[0].header.recorded == "loaded from a file"
    assert len(Chat.read("", shown.dynamo)) == 0
    assert last_run(shown.dynamo).header.recorded, "it has a chart"


def test_lanes_that_answer_different_messages_are_refused():
    one, other = (talk(PageService(scripted_pair()), prompt) for prompt in ("one", "other"))
    with pytest.raises(ValueError, match="do not answer the same messages; start a new chat"):
        Chat.read(one.wire("base"), other.wire("dynamo"))


@pytest.mark.parametrize("wire", ["{}", "[]", "3", "nonsense", '{"pass":0}', '{"format":9}', '{"format":1}'])
def test_a_value_that_is_no_chat_is_refused(wire):
    with pytest.raises(ValueError):
        Chat.read(wire, wire)


def test_a_chat_that_never_ends_is_refused():
    with pytest.raises(ValueError, match="start a new chat"):
        Chat.read("", "x" * (LONGEST_CHAT + 1))


def test_dropping_the_last_turn_leaves_the_others():
    chat = talk(PageService(scripted_pair()), "one", "two")
    assert chat.last_prompt == "two" and chat.last_seed == 3
    assert chat.without_last().wire("base") == chat.base[0].wire
    assert len(chat.without_last().without_last()) == 0


# ---- what is asked of the tokenizer


def test_the_oldest_turns_are_left_out_where_they_do_not_fit(tokenizer):
    messages = [
        {"role": role, "content": f"{role} number {turn}"}
        for turn in range(20)
        for role in ("user", "assistant")
    ]
    messages.append({"role": "user", "content": "the question"})
    whole = encode_messages(tokenizer, messages, 10_000)
    some = encode_messages(tokenizer, messages, 60)
    assert len(some) <= 60 < len(whole)
    assert whole[-len(some) :] == some
    assert tokenizer.decode(some).startswith("<|user|>")
    alone = encode_messages(tokenizer, messages, 1)
    assert tokenizer.decode(alone) == "<|user|>the question<|end|><|assistant|>"


def test_threshold_one_is_forced_on_the_opponent_of_the_same_weights():
    class Spy:
        def stream(self, ids, options, **keywords):
            return ids, options, keywords

    ids, options, keywords = AtThresholdOne(Spy()).stream(
        [1], SamplingOptions(threshold=0.3, top_k=7), seed=4
    )
    assert (ids, options, keywords) == ([1], SamplingOptions(threshold=1.0, top_k=7), {"seed": 4})


def test_an_unknown_opponent_is_named():
    with pytest.raises(ValueError, match="opponent: "):
        list(PageService(scripted_pair()).answer(Chat(), "hi", SETTINGS, "me"))


def test_the_chosen_opponent_runs_and_is_named_in_the_trace():
    pair = scripted_pair()
    *_, view = PageService(pair).answer(Chat(), "hi", SETTINGS, "generate")
    assert json.loads(view.base.splitlines()[0])["engine"] == "generate"
    assert [pair.engines.by_name[name].closed for name in ("generate", "loop")] == [1, 0]


@given(LINES, st.integers(0, 80))
def test_as_many_of_the_last_turns_are_kept_as_there_is_room_for(tokenizer, lines, room):
    roles = ("user", "assistant") * len(lines)
    messages = [{"role": role, "content": line} for role, line in zip(roles, lines, strict=False)]
    left = messages
    while len(left) >= 3 and len(encode_chat(tokenizer, left)) > room:
        left = left[2:]
    assert encode_messages(tokenizer, messages, room) == encode_chat(tokenizer, left)


def test_a_chat_of_thousands_of_turns_costs_what_there_is_room_for(tokenizer, monkeypatch):
    """It was encoded again for each turn that was left out: 600 turns took everyone five seconds."""
    read = []
    monkeypatch.setattr(
        "dynamo.ui.compare.pair.encode_chat",
        lambda tokenizer, messages: read.append(len(messages)) or encode_chat(tokenizer, messages),
    )
    turn = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello"}]
    messages = [*turn * 5000, turn[0]]
    kept = (len(encode_messages(tokenizer, messages, 200)) - 1) // len(encode_chat(tokenizer, turn[:1]))
    assert sum(read) < 20 * kept < 1000
