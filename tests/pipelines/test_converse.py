"""A chat model's own conversations: what is said, what is kept, and what a killed run goes on with."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from command_line import run
from conftest import tiny_base
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from dynamo.__main__ import main
from dynamo.data.sources import read_conversations
from dynamo.pipelines import conversation_writer as writer_module
from dynamo.pipelines.conversation_filter import ENDS, Filter
from dynamo.pipelines.conversation_writer import (
    LOOP_WINDOW,
    Conversation,
    ConversationWriter,
    ConverseOptions,
    is_loop,
    leads,
    rows_attention,
    stored_dtype,
)
from dynamo.pipelines.converse import SPLITS, converse, part_file, split_of
from dynamo.training.trainer import save_model

OPTIONS = ConverseOptions(
    rows=3, more_turns=0.5, longest_turn=12, longest_answer=24, longest=96, shortest_answer=2, seed=5
)
LOOP = " and so on" * 100
QUESTIONS = ["Hi", "A table for two", "At what time?", "In San Jose, please, at seven", "Bye now"]


def tiny_llama(**changes):
    """Four query heads on two key heads."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=300, num_key_value_heads=2, max_position_embeddings=640, initializer_range=0.2,
                    bos_token_id=0, eos_token_id=None, **{**shape, **changes})
    ).eval()  # fmt: skip


def talkative_model(tokenizer, patch):
    """A tiny model whose turns are plain letters and end after some seven tokens; without the compiled loop,
    whose threads a busy machine keeps waiting."""
    patch.setattr(writer_module, "loops", lambda: None)
    model = tiny_base()
    plain = [
        i for i in range(300) if tokenizer.decode([i]).strip().isalpha() and tokenizer.decode([i]).isascii()
    ]
    leaning = torch.full((300,), -math.inf)
    leaning[plain] = 0.0
    leaning[tokenizer.eos_token_id] = math.log(0.1 * len(plain))
    forward = model.forward

    def lean(*args, **kwargs):
        output = forward(*args, **kwargs)
        output.logits = output.logits / 5 + leaning
        return output

    model.forward = lean
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model


@pytest.fixture
def talkative(tokenizer, monkeypatch):
    return talkative_model(tokenizer, monkeypatch)


@pytest.fixture(scope="module")
def whole(tokenizer, tmp_path_factory):
    """The file of a run that nothing ended early, and its result."""
    output = tmp_path_factory.mktemp("whole") / "talks.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        return output, converse(talkative_model(tokenizer, patch), tokenizer, output, 200, OPTIONS)


def written(output):
    """Rows of all three files by their number."""
    paths = [part_file(output, split) for split in SPLITS]
    rows = [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines()]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: row for row in rows}


# ---- what is said


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("family", [tiny_base, tiny_llama])
def test_rows_of_different_lengths_say_what_transformers_says(family, kernels, tokenizer, monkeypatch):
    """Greedily, each answer is the arg max of the whole conversation's logits; later rows begin late."""
    if not kernels:
        monkeypatch.setattr(writer_module, "loops", lambda: None)
    model = family()
    model.generation_config.eos_token_id = None
    whole = copy.deepcopy(model)
    options = replace(OPTIONS, rows=2, top_k=1)
    writer = ConversationWriter(model, tokenizer, options, QUESTIONS)
    before, answer_marker = leads(tokenizer)[:2]
    rows = [row for row, _ in writer.finished(range(len(QUESTIONS)))]
    assert sorted(row.number for row in rows) == [0, 1, 2, 3, 4]
    for row in rows:
        (_, question), (_, answer) = row.turns
        assert tokenizer.decode(question) == QUESTIONS[row.number] and answer
        prompt = [*before, *question, *answer_marker]
        with torch.no_grad():
            logits = whole(torch.tensor([prompt + answer])).logits[0, len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == answer


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (6, 2), (8, 2)])
def test_rows_of_a_model_in_16_bits_attend_as_in_float32(heads, kv_heads):
    rng, rows, capacity, width = torch.Generator().manual_seed(0), 3, 20, 8
    query = torch.randn(rows, heads, 1, width, generator=rng).bfloat16()
    dtype = stored_dtype(query)
    stored = [torch.randn(rows, kv_heads, capacity, width, generator=rng).to(dtype) for _ in range(2)]
    lengths = torch.tensor([20, 1, 7])
    seen = torch.arange(capacity) < lengths[:, None]
    mask = torch.zeros(rows, 1, 1, capacity).masked_fill(~seen[:, None, None], float("-inf"))
    expected = torch.nn.functional.scaled_dot_product_attention(
        query.float(), *(each.float() for each in stored), mask, enable_gqa=True
    )
    every, before = torch.arange(rows), lengths - 1
    cache = SimpleNamespace(lengths=before, new=[each[every, :, before][:, :, None] for each in stored])
    kept = [each.clone() for each in stored]
    for each in stored:
        each[every, :, before] = 0  # attention puts it there
    found, _ = rows_attention(None, query, *stored, mask.to(query.dtype), width**-0.5, cache)
    for each, whole in zip(stored, kept, strict=True):
        assert each.equal(whole)
    assert found.dtype == query.dtype and found.shape == (rows, 1, heads, width)
    torch.testing.assert_close(found.float(), expected.transpose(1, 2), rtol=1e-2, atol=1e-2)


def test_conversations_have_the_shape_that_training_reads(whole):
    output, result = whole
    rows = written(output)
    assert result["conversations"] == len(rows) > 5
    assert result["answer_tokens"] == sum(row["answer_tokens"] for row in rows.values()) >= 200
    assert json.loads(output.with_suffix(".json").read_text()) == result
    turns = list(read_conversations(output))
    assert turns == [row["messages"] for number, row in rows.items() if split_of(number) == "train"]
    for row in rows.values():
        roles = [message["role"] for message in row["messages"]]
        assert roles == ["user", "assistant"] * (len(roles) // 2) and 2 <= len(roles) <= 6
        assert all(message["content"].strip() for message in row["messages"])
    assert {len(row["messages"]) for row in rows.values()} > {2}, "some go on after the first answer"


def test_no_more_is_begun_than_is_wanted(talkative, tokenizer, tmp_path):
    result = converse(talkative, tokenizer, tmp_path / "talks.jsonl", 30, replace(OPTIONS, rows=64))
    assert result["answer_tokens"] >= 30 and result["next"] < 64 and not result["under_way"]


def test_every_question_is_answered_once(talkative, tokenizer, tmp_path):
    result = converse(talkative, tokenizer, tmp_path / "talks.jsonl", 0, OPTIONS, QUESTIONS)
    assert result["conversations"] + sum(result["dropped"].values()) == len(QUESTIONS)
    for number, row in written(tmp_path / "talks.jsonl").items():
        assert row["messages"][0]["content"] == QUESTIONS[number]


def test_three_in_a_hundred_conversations_are_held_out():
    splits = [split_of(number) for number in range(10_000)]
    assert all(150 < splits.count(split) < 250 for split in ("dev", "test"))


# ---- what a killed run goes on with


class Killed(Exception):
    pass


def killed_after(count):
    left = iter(range(count))

    def stop():
        if next(left, None) is None:
            raise Killed
        return False

    return stop


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "stopped"])
def test_a_run_that_ended_early_goes_on_with_the_same_conversations(
    kill, whole, talkative, tokenizer, tmp_path
):
    output = tmp_path / "talks.jsonl"
    if kill:
        with pytest.raises(Killed):
            converse(talkative, tokenizer, output, 200, OPTIONS, stop=killed_after(6))
        with output.open("a") as file:
            file.write('{"id": 99, "mess')  # a line that the kill cut
    else:
        converse(talkative, tokenizer, output, 200, OPTIONS, stop=lambda: len(written(output)) == 4)
    begun = written_before_cut(output)
    assert begun and json.loads(output.with_suffix(".json").read_text())["under_way"]
    result = converse(talkative, tokenizer, output, 200, OPTIONS)
    rows, expected = written(output), written(whole[0])
    assert begun <= rows.keys() and result["answer_tokens"] >= 200
    common = rows.keys() & expected.keys()
    assert len(common) > len(begun) and len(common) > 0.7 * len(expected)
    assert all(rows[number] == expected[number] for number in common)


def written_before_cut(output):
    lines = output.read_text().split("\n")[:-1]
    return {json.loads(line)["id"] for line in lines}


def test_another_setting_or_a_lost_state_is_refused(talkative, tokenizer, tmp_path):
    output = tmp_path / "talks.jsonl"
    converse(talkative, tokenizer, output, 30, OPTIONS)
    with pytest.raises(ValueError, match=r"^output\b.*\btemperature\b"):
        converse(talkative, tokenizer, output, 30, replace(OPTIONS, temperature=0.9))
    state = json.loads(output.with_suffix(".json").read_text())
    del state["shortened"]  # of a run that was begun before there was such a thing
    output.with_suffix(".json").write_text(json.dumps(state))
    assert converse(talkative, tokenizer, output, 60, OPTIONS)["answer_tokens"] >= 60
    output.with_suffix(".json").unlink()
    with pytest.raises(ValueError, match=r"^output\b"):
        converse(talkative, tokenizer, output, 30, OPTIONS)


# ---- what is kept


def said(*turns):
    roles = ("user", "assistant") * len(turns)
    return Conversation(0, np.random.default_rng(0), 1, [], list(zip(roles, turns, strict=False)))


def test_an_exchange_is_kept_or_its_fault_is_named(tokenizer):
    def ids(text):
        return tokenizer(text)["input_ids"]

    question, answer = ids("A table for two, please"), ids("At what time would you like it?")
    kept = Filter(tokenizer, OPTIONS)
    messages, tokens, *faults = kept.messages(said(question, answer), "ended")
    assert [message["content"] for message in messages] == list(map(tokenizer.decode, (question, answer)))
    assert (tokens, faults) == (len(answer), [None, None])
    faults = {
        "duplicate": said(question, answer),
        "not ended": said(ids("Another one"), answer),
        "too short": said(ids("Another two"), answer[:1]),
        "not text": said(ids("Another three"), [*answer, tokenizer.eos_token_id]),
        "repetition loop": said(ids("Another four"), answer[:2] * 30),
    }
    for name, row in faults.items():
        assert kept.messages(row, "cut" if name == "not ended" else "ended") == ([], 0, name, None)
    later = said(ids("Something else"), answer, question, answer[:1])
    messages, tokens, fault, _ = kept.messages(later, "ended")
    assert (len(messages), tokens, fault) == (2, len(answer), "too short"), "what came before is kept"


@pytest.mark.parametrize(
    ("ended", "last"),
    [("cut", " And then the"), ("cut", "\n7."), ("cut", LOOP), ("looped", LOOP)],
    ids=["half a sentence", "an item's number", "cut while it looped", "looped"],
)
def test_an_answer_that_did_not_end_is_kept_up_to_a_sentence(ended, last, tokenizer):
    def ids(text):
        return tokenizer(text)["input_ids"]

    sentences = [f"{n * 7919} and {n**5}." for n in range(10, 32)]
    said_last = ids(last)[:LOOP_WINDOW]
    answer = [*ids(" ".join(sentences)), *said_last]
    kept = Filter(tokenizer, OPTIONS)
    messages, tokens, fault, shortened = kept.messages(said(ids("Where?"), answer), ended)
    assert messages[1]["content"] == " ".join(sentences)
    assert (tokens, fault, shortened) == (len(answer) - len(said_last), None, ENDS[ended])
    short = [*ids(sentences[0]), *ids(last)]
    assert kept.messages(said(ids("And where?"), short), ended) == ([], 0, ENDS[ended], None)


def test_an_answer_that_loops_is_stopped_long_before_it_is_cut(tokenizer, monkeypatch):
    monkeypatch.setattr(writer_module, "loops", lambda: None)
    model = tiny_base(max_position_embeddings=512)
    forward = model.forward

    def again_and_again(*args, **kwargs):
        out = forward(*args, **kwargs)
        out.logits[..., 40] += 1000
        return out

    model.forward = again_and_again
    options = replace(OPTIONS, longest_answer=300, longest=400)
    writer = ConversationWriter(model, tokenizer, options, QUESTIONS)
    for row, ended in writer.finished(range(2)):
        assert ended == "looped" and row.turns[-1][1] == [40] * (LOOP_WINDOW // 2)
        assert Filter(tokenizer, options).messages(row, ended) == ([], 0, "repetition loop", None)


@given(st.lists(st.integers(0, 299), min_size=1, max_size=8), st.integers(0, 60))
def test_a_text_that_repeats_itself_is_a_loop_and_a_short_one_is_not(pattern, times):
    text = pattern * times
    runs = [tuple(text[start : start + 4]) for start in range(len(text) - 3)]
    assert is_loop(text) == (len(runs) >= 24 and len(set(runs)) < len(runs) / 2)
    assert not is_loop(text[:26]) and not is_loop(list(range(times)))


def test_a_model_that_never_ends_its_turns_is_refused(tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(writer_module, "loops", lambda: None)
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"^model\b"):
        converse(model, tokenizer, tmp_path / "talks.jsonl", 10, replace(OPTIONS, rows=2, longest_turn=4))


# ---- what is refused

WRONG = st.one_of(
    st.tuples(
        st.sampled_from(["rows", "top_k", "longest_turn", "longest_answer", "shortest_answer"]),
        st.integers(max_value=0) | st.floats(0.1, 0.9),
    ),
    st.tuples(
        st.sampled_from(["temperature", "user_temperature"]),
        st.floats(max_value=0) | st.floats(10, exclude_min=True) | st.just(math.nan),
    ),
    st.tuples(
        st.sampled_from(["user_top_p", "more_turns"]),
        st.floats(max_value=0, exclude_max=True) | st.floats(1, exclude_min=True) | st.just(math.nan),
    ),
    st.tuples(st.just("seed"), st.integers(max_value=-1)),
)


@given(WRONG)
def test_an_option_out_of_range_is_named(wrong):
    name, value = wrong
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        ConverseOptions(**{name: value})


def test_what_does_not_fit_together_is_named(talkative, tokenizer, tmp_path):
    for longest in (36, 641):
        with pytest.raises(ValueError, match=r"^longest\b"):
            converse(talkative, tokenizer, tmp_path / "a.jsonl", 10, replace(OPTIONS, longest=longest))
    with pytest.raises(ValueError, match=r"^output\b"):
        converse(talkative, tokenizer, tmp_path / "a.json", 10, OPTIONS)
    with pytest.raises(ValueError, match=r"^tokens\b"):
        converse(talkative, tokenizer, tmp_path / "a.jsonl", 0, OPTIONS)
    plain = copy.deepcopy(tokenizer)
    for template in (None, "{{ messages[0]['content'] }}"):
        plain.chat_template = template
        with pytest.raises(ValueError, match=r"^model\b"):
            converse(talkative, plain, tmp_path / "a.jsonl", 10, OPTIONS)
    assert not any(tmp_path.iterdir())


# ---- the command


def test_the_command_answers_prompts_and_names_every_option(tokenizer, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(writer_module, "loops", lambda: None)
    model = tiny_base()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    save_model(model, tokenizer, tmp_path / "model")
    chat, *bare, asked, last = QUESTIONS
    prompts = [{"messages": [{"role": "user", "content": chat}]}, *bare, {"question": asked}]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    (tmp_path / "more.txt").write_text(last)
    code, result = run(
        capsys, "converse", "--model", tmp_path / "model", "--output", tmp_path / "talks.jsonl", "--prompts",
        tmp_path / "prompts.jsonl", tmp_path / "more.txt", "--rows", 2, "--longest-answer", 8,
        "--longest-turn", 8, "--longest", 64, "--dtype", "float32", "--device", "cpu",
    )  # fmt: skip
    assert code == 0, result
    assert result["settings"]["questions"] == 5
    assert result["conversations"] + sum(result["dropped"].values()) == 5
    with pytest.raises(SystemExit) as ended:
        main(["converse", "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"--{each.name.replace('_', '-')}" in shown for each in fields(ConverseOptions))
