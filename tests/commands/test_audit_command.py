"""`python -m dynamo audit`: traces, chats, given replies and one that is written now."""

import json

import pytest
from command_line import LONGEST, folder, run

from dynamo import Engine, SamplingOptions, load
from dynamo.data.text import encode_chat, encode_plain, encode_prompt
from dynamo.evaluation.audit import audit

__all__ = ["folder"]  # a fixture


def test_audit_of_a_trace_scores_every_run_under_the_base(folder, capsys):
    trace = folder / "run.ndjson"
    run(capsys, "compare", "Hello", "--model", folder / "pair", "--trace", trace, "--threshold", 0, *LONGEST)
    code, result = run(capsys, "audit", trace, "--model", folder / "pair", "--top-k", 20)
    assert code == 0 and [text["lane"] for text in result["texts"]] == ["base", "dynamo"]
    pair = load(str(folder / "pair"))
    prompt = encode_prompt(pair.tokenizer, "Hello")
    for text in result["texts"]:
        expected = audit(pair.base, prompt, text["ids"], 20).to_json()
        assert {name: text[name] for name in expected} == json.loads(json.dumps(expected))
    # A stock model may judge as well, and this one is the pair's own base.
    assert (
        run(capsys, "audit", trace, "--model", folder / "pair/base", "--top-k", 20)[1]["texts"]
        == result["texts"]
    )


def test_audit_reads_a_chat_turn_after_turn(folder, capsys, tokenizer):
    from dynamo.sampling.records import StepRecord
    from dynamo.trace.ndjson import End, Header, PassLine, encode_lines

    ids = encode_plain(tokenizer, ["At seven."])[0]
    texts = [tokenizer.decode([token]) for token in ids]
    turn = [
        PassLine.from_record(i, StepRecord((t,), 1, 0.1), [s])
        for i, (t, s) in enumerate(zip(ids, texts, strict=True))
    ]
    with (folder / "chat.ndjson").open("w") as file:
        for question in ("When?", "Sure?"):
            file.write(encode_lines([Header("run", "dynamo", "tiny", question), *turn, End("length")]))
    _, result = run(capsys, "audit", folder / "chat.ndjson", "--model", folder / "pair")
    base = load(str(folder / "pair")).base
    turns = [("user", "When?"), ("assistant", "At seven."), ("user", "Sure?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    for text, context in zip(result["texts"], (messages[:1], messages), strict=True):
        expected = audit(base, encode_chat(tokenizer, context), ids)
        assert text["nats_per_token"] == pytest.approx(expected.nats_per_token)


def test_audit_of_a_given_reply_and_of_one_written_now(folder, capsys, tokenizer):
    _, result = run(capsys, "audit", "--prompt", "Hello", "--reply", "At seven.", "--model", folder / "pair")
    assert result["texts"][0]["ids"] == encode_plain(tokenizer, ["At seven."])[0]
    assert "".join(result["texts"][0]["pieces"]) == "At seven."
    _, result = run(capsys, "audit", "--prompt", "Hello", "--model", folder / "pair",
                    "--seed", 5, "--threshold", 0, *LONGEST)  # fmt: skip
    pair = load(str(folder / "pair"))
    steps = Engine(pair.dynamo, pair.table, tokenizer).stream(
        encode_prompt(tokenizer, "Hello"), SamplingOptions(threshold=0), 12, 5
    )
    assert result["texts"][0]["ids"] == [token for step in steps for token in step.tokens]
