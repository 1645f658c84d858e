"""People's own chat templates: the ids are transformers', answers are found, contents stay text."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from templates import (
    CHATML,
    LLAMA_3,
    MISTRAL,
    PLAIN_MARKERS,
    SPECIAL,
    TEMPLATES,
    THINKING,
    byte_level,
    sentence_piece,
)

from dynamo.data import text
from dynamo.data.instructions import encode
from dynamo.data.rows import Row
from dynamo.model.loss import IGNORED_LABEL

SPACES = {byte_level: "Ġ", sentence_piece: "▁"}
KINDS = tuple(SPACES)
TOKENIZERS = {(template, kind): kind(template) for template in TEMPLATES for kind in KINDS}
contents = st.text(st.sampled_from(" \nHhi.:éß中🙂<>|/s_[]INST"), max_size=12)
markers = st.sampled_from([name for names in SPECIAL.values() for name in names])
each_tokenizer = st.sampled_from(list(TOKENIZERS))


def conversation(*said, system=None):
    roles = ("user", "assistant") * len(said)
    first = [] if system is None else [{"role": "system", "content": system}]
    return first + [{"role": role, "content": each} for role, each in zip(roles, said, strict=False)]


def hf(tokenizer, turns, **options):
    return tokenizer.apply_chat_template(turns, tokenize=True, **options)["input_ids"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_ids_are_those_of_transformers(template, kind):
    """Contents that spell no marker, white space where the template keeps it."""
    tokenizer = TOKENIZERS[template, kind]
    systems = [None] if template == MISTRAL else [None, "Hi."]
    for system in systems:
        for said in (["hi"], ["hi", "Hi"], ["Hi hi", "hi.", "hi"], ["hi", "Hi", "hi hi", "Hi é中🙂"]):
            turns = conversation(*said, system=system)
            assert text.encode_turns(tokenizer, turns).ids == hf(tokenizer, turns)
            asked = turns if turns[-1]["role"] == "user" else turns[:-1]
            assert text.encode_chat(tokenizer, asked) == hf(tokenizer, asked, add_generation_prompt=True)


@given(each_tokenizer, st.lists(contents, min_size=2, max_size=6), st.none() | contents)
def test_a_prompt_begins_its_conversation_and_answers_follow(name, said, system):
    """Whatever is said: the ids before an answer are those of the prompt that asks for it, the answer's
    decode to it and its end, and together they are the whole."""
    template, _ = name
    tokenizer = TOKENIZERS[name]
    turns = conversation(*said, system=None if template == MISTRAL else system)
    chat = text.encode_turns(tokenizer, turns)
    replies = [place for place, turn in enumerate(turns) if turn["role"] == "assistant"]
    assert len(chat.answers) == len(replies)
    for place, answer in zip(replies, chat.answers, strict=True):
        last = place == len(turns) - 1
        assert chat.ids[: answer.start] == text.encode_chat(tokenizer, turns[:place])
        content = turns[place]["content"]
        content = content.strip() if template == LLAMA_3 else content
        before = {MISTRAL: " ", PLAIN_MARKERS: " ", THINKING: "<think>\n\n</think>\n\n" if last else ""}
        bytes_of = text.TokenBytes(tokenizer)
        ids = chat.ids[answer.start : answer.stop]
        written = b"".join(map(bytes_of, ids)).decode()
        if template == THINKING and last:
            content = content.lstrip("\n") if content.startswith("\n") else content
        assert written == before.get(template, "") + content + SPECIAL[template][1]


@given(
    each_tokenizer, st.lists(st.lists(contents | markers, max_size=3).map("".join), min_size=3, max_size=3)
)
def test_markers_that_a_content_spells_are_text(name, said):
    """As many special tokens as the template writes around contents that spell none, and all that was said
    is there."""
    tokenizer = TOKENIZERS[name]
    special = text.special_ids(tokenizer)
    chat = text.encode_turns(tokenizer, conversation(*said))
    plain = text.encode_turns(tokenizer, conversation("a", "b", "c"))
    assert [i for i in chat.ids if i in special] == [i for i in plain.ids if i in special]
    if name[1] is byte_level:
        shown = text.decode(tokenizer, chat.ids)
        assert all(each.strip() in shown for each in said)


def test_a_word_that_marks_thoughts_is_the_users_text_and_the_assistants_word():
    """`<think>` is an added word of such models, no special token, and the template writes it."""
    tokenizer = byte_level(THINKING)
    tokenizer.add_tokens(["<think>", "</think>"])
    think = tokenizer.convert_tokens_to_ids("<think>")
    asked = text.encode_turns(tokenizer, conversation("say <think>", "no", "hi", "Hi"))
    assert asked.ids.count(think) == 1, "the template's own"
    answered = text.encode_turns(tokenizer, conversation("hi", "<think>", "hi", "Hi"))
    assert answered.ids.count(think) == 2


def test_loss_is_on_answers_and_their_ends_only():
    for (template, kind), tokenizer in TOKENIZERS.items():
        turns = conversation("hi", "Hi hi", "hi", "hi.")
        ((ids, labels),) = encode([Row(turns)], tokenizer, 500)
        scored = labels != IGNORED_LABEL
        assert (labels[scored] == ids[scored]).all()
        end = SPECIAL[template][1]
        shown = tokenizer.decode(ids[scored], skip_special_tokens=False)
        think = "<think>\n\n</think>\n\n" if template == THINKING else ""
        assert [each.strip() for each in shown.split(end)] == ["Hi hi", think + "hi.", ""], (template, kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_leads_and_what_is_said_make_a_conversation(template, kind):
    """So does a model that speaks for both, token by token."""
    tokenizer = TOKENIZERS[template, kind]
    one = text.chat_template(tokenizer)
    space = " " if template in (MISTRAL, PLAIN_MARKERS) else ""
    turns = conversation("x", "y", "z")
    roles = [turn["role"] for turn in turns]
    ids = []
    for place, said in enumerate(["x", space + "y", "z"]):
        ids += one.lead(roles[:place], ask=True) if place == 1 else one.lead(roles[: place + 1])
        ids += [tokenizer.convert_tokens_to_ids(each) for each in said.replace(" ", SPACES[kind])]
    assert ids + one.lead(roles, ask=True) == text.encode_chat(tokenizer, turns)


def test_a_system_turn_stands_where_the_template_puts_it():
    tokenizer = TOKENIZERS[CHATML, byte_level]
    default, given_ = (
        tokenizer.decode(text.encode_chat(tokenizer, turns), skip_special_tokens=False)
        for turns in (conversation("hi"), conversation("hi", system="Be brief."))
    )
    assert "You help." in default and "Be brief." not in default
    assert "Be brief." in given_ and "You help." not in given_


def test_roles_that_a_template_does_not_take_are_refused():
    mistral = TOKENIZERS[MISTRAL, byte_level]
    with pytest.raises(ValueError, match=r"^messages: .*alternate"):
        text.encode_chat(mistral, conversation("hi", system="Be brief."))
    template = text.chat_template(mistral)
    assert template.refusal(["system", "user"]) and not template.refusal(["user", "assistant"])
    for role in ("system", "<|im_end|>", None):
        with pytest.raises(ValueError, match=r"^role"):
            text.encode_turns(byte_level(text.CHAT_TEMPLATE), [{"role": role, "content": "x"}])
    with pytest.raises(ValueError, match=r"^role"):
        text.encode_turns(mistral, [{"role": "narrator", "content": "x"}])


@pytest.mark.parametrize(
    "written",
    ["message['content'] | upper", "message['content'] | tojson", "message['content'] * 2", "message['role']",
     "message['content'].replace('\n', ' ')"],
)  # fmt: skip
def test_a_template_that_does_not_keep_contents_is_refused(written):
    tokenizer = byte_level("{% for message in messages %}{{ " + written + " }}{% endfor %}")
    with pytest.raises(ValueError, match=r"^messages: .*turn 1 \(user\)"):
        text.encode_chat(tokenizer, conversation("hi"))


@pytest.mark.parametrize("template", ["{{ oops() }}", "{% for %}", "{{ messages[99]['content'] }}"])
def test_a_broken_template_is_one_sentence(template):
    tokenizer = byte_level(template)
    with pytest.raises(ValueError, match=r"^messages: "):
        text.encode_chat(tokenizer, conversation("hi"))
    assert text.end_ids(tokenizer) == {tokenizer.eos_token_id}


def test_every_id_that_ends_a_text_counts():
    """eos, what the template ends an answer with, and stop tokens of chat models that are special tokens."""
    for (template, _), tokenizer in TOKENIZERS.items():
        assert text.end_ids(tokenizer) == {tokenizer.convert_tokens_to_ids(SPECIAL[template][1])}
    own = "{% for message in messages %}{{ message['content'] + '<|over|>' }}{% endfor %}"
    tokenizer = byte_level(own, ("<s>", "</s>", "<|over|>", "<|eot_id|>"))
    tokenizer.add_tokens(["<|im_end|>"])
    named = map(tokenizer.convert_tokens_to_ids, ("</s>", "<|over|>", "<|eot_id|>"))
    assert text.end_ids(tokenizer) == set(named), "a word that is no special token ends nothing"


def test_a_template_is_never_overwritten():
    tokenizer = byte_level(CHATML)
    with pytest.raises(ValueError, match=r"^tokenizer"):
        text.add_chat_template(tokenizer)
    assert tokenizer.chat_template == CHATML
