import threading

import numpy as np
import pytest
import torch
from conftest import tiny_base, tiny_dynamo

from dynamo import Engine, SamplingOptions
from dynamo.decoding.generate import ChooseOne, GenerateEngine, Weigh
from dynamo.sampling.candidates import top_candidates
from dynamo.sampling.sampler import Context, choose_one

PROMPT = [5, 6, 7, 8, 6]


def generate_threads():
    return [thread for thread in threading.enumerate() if thread.name == "generate"]


def tokens_of(records):
    return [token for record in records for token in record.tokens]


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("top_k", [1, 3, 50, 1000])
@pytest.mark.parametrize("penalty", [1.0, 1.3])
def test_one_step_distribution_is_the_samplers(temperature, top_k, penalty):
    """Scores are few whole numbers, so that top-k cuts through ties; token 9 is special and was seen."""
    scores = torch.from_numpy(np.random.default_rng(top_k).integers(0, 6, (1, 40)).astype(np.float32))
    context_ids = torch.tensor([[1, 2, 3, 9, 30]])
    options = SamplingOptions(temperature=temperature, top_k=top_k, repetition_penalty=penalty)
    candidates = top_candidates(scores.numpy(), options)
    context = Context(40, (9,))
    context.add([1, 2, 3, 9, 30])
    ranks, weights = choose_one(candidates, context, options)
    expected = np.zeros(40)
    expected[candidates.ids[0][ranks[:, 0]]] = weights / weights.sum()
    counted, draws = np.zeros(40), 2000
    chooser = ChooseOne(options, (9,), seed=0, lookup=False)
    chooser._uniforms.random = iter((np.arange(draws) + 0.5) / draws).__next__
    for _ in range(draws):
        row = chooser(context_ids, scores)[0]
        assert int((row > -torch.inf).sum()) == 1
        counted[int(row.argmax())] += 1 / draws
    if temperature == 0:
        assert counted[candidates.ids[0][ranks[int(weights.argmax()), 0]]] == pytest.approx(1)
    else:
        # An even grid of uniforms draws every token as often as its probability, up to one draw at its ends.
        np.testing.assert_allclose(counted, expected, atol=1.001 / draws)
    ids, given, _ = chooser.distribution(context_ids, scores)
    dense = np.zeros(40)
    dense[ids] = given / given.sum()
    np.testing.assert_allclose(dense, expected, atol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_same_seed_same_text_as_the_own_loop(temperature):
    model, options = tiny_base(), SamplingOptions(temperature=temperature, repetition_penalty=1.2)
    for seed in range(3):
        own = list(Engine(model).stream(PROMPT, options, 24, seed))
        records = list(GenerateEngine(model).stream(torch.tensor([PROMPT]), options, 24, seed))
        assert tokens_of(records) == tokens_of(own)
        for ours, theirs in zip(own, records, strict=True):
            assert theirs.probabilities == pytest.approx(ours.probabilities, abs=1e-5)
            assert (theirs.order, theirs.prefill) == (1, ours.prefill) and theirs.seconds > 0
        assert tokens_of(GenerateEngine(model).complete(PROMPT, options, 24, seed)) == tokens_of(own)


def test_generation_ends_where_the_own_loop_ends(tokenizer):
    model = tiny_base()
    plain = tokens_of(GenerateEngine(model).stream(PROMPT, max_new_tokens=24))
    assert len(plain) == 24
    model.generation_config.eos_token_id = [plain[9], plain[5]]
    ended = tokens_of(GenerateEngine(model).stream(PROMPT, max_new_tokens=24))
    assert ended == tokens_of(Engine(model).stream(PROMPT, max_new_tokens=24))
    assert len(ended) <= 6 and ended[-1] in (plain[9], plain[5])
    model.generation_config.eos_token_id = None
    text = tokenizer.decode(plain)
    stop = [text[4:7]]
    stopped = tokens_of(GenerateEngine(model, tokenizer).stream(PROMPT, max_new_tokens=24, stop=stop))
    assert stopped == tokens_of(Engine(model, None, tokenizer).stream(PROMPT, max_new_tokens=24, stop=stop))
    assert len(stopped) < 24


def test_length_is_cut_to_the_models_positions():
    model = tiny_base(max_position_embeddings=12)
    assert len(tokens_of(GenerateEngine(model).stream(PROMPT, max_new_tokens=100))) == 12 - len(PROMPT)


def test_time_in_the_callers_hands_is_not_counted(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("dynamo.decoding.generate.time.perf_counter", lambda: clock[0])
    forward = torch.nn.Module.__call__
    model = tiny_base()

    def slow(self, *arguments, **named):
        clock[0] += 2.0 if self is model else 0.0
        return forward(self, *arguments, **named)

    monkeypatch.setattr(torch.nn.Module, "__call__", slow)
    seconds = []
    for record in GenerateEngine(model).stream(PROMPT, max_new_tokens=4):
        seconds.append(record.seconds)
        clock[0] += 1000.0
    assert seconds == [2.0] * 4


def test_closing_ends_the_thread():
    stream = GenerateEngine(tiny_base()).stream(PROMPT, max_new_tokens=500)
    assert not generate_threads(), "nothing runs before the first record is asked for"
    next(stream)
    assert len(generate_threads()) == 1
    stream.close()
    assert not generate_threads()
    list(GenerateEngine(tiny_base()).stream(PROMPT, max_new_tokens=3))
    assert not generate_threads()


def test_errors_of_the_thread_reach_the_caller(monkeypatch):
    model = tiny_base()
    stream = GenerateEngine(model).stream(PROMPT, max_new_tokens=9)
    next(stream)

    def broken(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(model.gpt_neox, "forward", broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        next(stream)
    assert not generate_threads()


def test_nobodys_random_state_is_touched():
    model = tiny_base()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    list(GenerateEngine(model).stream(PROMPT, SamplingOptions(temperature=1.0), 8, seed=1))
    torch.testing.assert_close(torch.rand(3), expected)


def test_two_streams_of_one_engine_do_not_mix():
    engine, options = GenerateEngine(tiny_base()), SamplingOptions(temperature=1.0)
    alone = [tokens_of(engine.stream(PROMPT[:n], options, 12, n)) for n in (2, 4)]
    streams = [engine.stream(PROMPT[:n], options, 12, n) for n in (2, 4)]
    mixed = [tokens_of(pair) for pair in zip(*zip(*streams, strict=True), strict=True)]
    assert mixed == alone


def test_prompt_lookup_writes_the_same_greedy_text_in_fewer_passes():
    """A greedy tiny model soon repeats itself, which is what prompt lookup lives on."""
    model, options = tiny_base(), SamplingOptions(temperature=0.0, repetition_penalty=1.0)
    plain = GenerateEngine(model).complete(PROMPT, options, 60)
    looked_up = GenerateEngine(model, prompt_lookup_num_tokens=4).complete(PROMPT, options, 60)
    assert tokens_of(looked_up) == tokens_of(plain)
    assert len(looked_up) < len(plain)
    assert all(len(record.probabilities) == len(record.tokens) for record in looked_up)


def test_a_draft_model_changes_the_passes_and_not_the_greedy_text():
    model, other, options = tiny_base(), tiny_base(seed=5), SamplingOptions(temperature=0.0)
    plain = tokens_of(GenerateEngine(model).complete(PROMPT, options, 40))
    for draft in (model, other):
        records = GenerateEngine(model, draft=draft).complete(PROMPT, options, 40)
        assert tokens_of(records) == plain
        assert [record.order for record in records] == [len(record.tokens) for record in records]
        assert len(records) < (25 if draft is model else 41), "a draft by the model itself is always right"


@pytest.mark.slow
def test_a_draft_model_has_a_random_state_of_its_own():
    """Weighed, not drawn: over all first tokens the shares are those that the processor gives."""
    engine = GenerateEngine(tiny_base(), draft=tiny_base(seed=5))
    options = SamplingOptions(temperature=1.0, top_k=3, repetition_penalty=1.2)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    texts = [tokens_of(engine.complete(PROMPT, options, 2, seed)) for seed in range(300)]
    torch.testing.assert_close(torch.rand(3), expected)
    assert texts[7] == tokens_of(engine.complete(PROMPT, options, 2, 7))
    with torch.no_grad():
        scores = tiny_base()(torch.tensor([PROMPT])).logits[:, -1]
    left = Weigh(options, engine._special_ids, 0, False)(torch.tensor([PROMPT]), scores)
    shares = left.softmax(-1)[0]
    assert int((shares > 0).sum()) == 3
    for token in shares.nonzero().flatten().tolist():
        drawn = sum(text[0] == token for text in texts) / 300
        assert abs(drawn - shares[token]) < 5 * (0.25 / 300) ** 0.5
    assert {text[0] for text in texts} <= set(shares.nonzero().flatten().tolist())


def test_a_draft_of_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="draft: "):
        GenerateEngine(tiny_base(), draft=tiny_base(vocab_size=301))


def test_static_cache_and_compiled_step_write_the_same_text(monkeypatch):
    """The compiler itself takes minutes: it is asked for, and given back what it was given."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda step, **settings: compiled.append(settings) or step)
    engine, options = GenerateEngine(tiny_base(), compiled=True), SamplingOptions()
    assert tokens_of(engine.complete(PROMPT, options, 20, 3)) == tokens_of(
        GenerateEngine(tiny_base()).complete(PROMPT, options, 20, 3)
    )
    assert [settings["mode"] for settings in compiled] == ["default"]
    assert engine.flags["cache_implementation"] == "static" and engine.flags["compiled"] == "default"


def test_dynamo_model_generates_with_its_first_head():
    model = tiny_dynamo()
    first_head = Engine(model.to_pythia()).stream(PROMPT, max_new_tokens=10)
    assert tokens_of(GenerateEngine(model).stream(PROMPT, max_new_tokens=10)) == tokens_of(first_head)


def test_flags_say_what_runs():
    flags = GenerateEngine(tiny_base(), prompt_lookup_num_tokens=4).flags
    assert flags["use_cache"] and flags["dtype"] == "float32" and flags["prompt_lookup_num_tokens"] == 4
    assert flags["library"].startswith("transformers ")


@pytest.mark.parametrize(
    "arguments, words",
    [
        (([],), "the prompt is empty"),
        (([5, 300],), "expected ids from 0 to 299, got 300"),
        (([5] * 640,), "the model reads 640"),
        ((torch.ones(2, 3, dtype=torch.long),), "expected one row"),
        ((PROMPT, None, 0), "max_new_tokens: "),
        ((PROMPT, None, 5, -1), "seed: "),
        ((PROMPT, None, 5, 0, ["x"]), "stop strings need a tokenizer"),
    ],
)
def test_bad_input_is_refused_at_once(arguments, words):
    with pytest.raises(ValueError, match=words):
        GenerateEngine(tiny_base()).stream(*arguments)
