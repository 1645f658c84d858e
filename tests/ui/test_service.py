from __future__ import annotations

import itertools
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from types import SimpleNamespace

import pytest
from fakes import HOSTILE, scripted_pair
from talks import SETTINGS, talk

from dynamo.sampling.options import SamplingOptions
from dynamo.trace.ndjson import read_runs, read_trace
from dynamo.ui.compare import service as service_module
from dynamo.ui.compare.chat import Chat
from dynamo.ui.compare.duel import Duel
from dynamo.ui.compare.handlers import Handlers
from dynamo.ui.compare.presenter import TIMING, Race
from dynamo.ui.compare.service import MOST_SEEKERS, STRIP_THRESHOLDS, Busy, PageService
from dynamo.ui.compare.settings import PRESETS, Settings, preset_of


def opinion(prompt, reply):
    """An audit that finds the second token unlikely and the last outside of any top-k."""
    ranks = [0] * len(reply)
    ranks[-1] = 1000
    log_p = [-0.1] * len(reply)
    log_p[1] = -6.0
    return SimpleNamespace(
        ranks=tuple(ranks),
        log_probabilities=tuple(log_p),
        nats_per_token=0.5,
        unlikely_share=0.1,
        repetition=0.2,
    )


# ---- the quality dial


def test_decoding_again_times_both_lanes_at_the_same_prompt_and_seed():
    """Its ratio was DynaMo's new clock over the base lane's old one: 1.88 to 6.82 at 2.88 tokens a pass."""
    service = PageService(scripted_pair())
    chat = talk(service, "one", "two")
    at = replace(SETTINGS, options=replace(SETTINGS.options, threshold=1.0), seed=99)
    views = list(service.decode_again(chat, at))
    again = Chat.read(views[-1].base, views[-1].dynamo)
    assert (again.base[0].wire, again.dynamo[0].wire) == (chat.base[0].wire, chat.dynamo[0].wire)
    assert again.base[1].header.run != chat.base[1].header.run
    assert again.base[1].header.options == again.dynamo[1].header.options
    header = again.dynamo[1].header
    assert (header.prompt, header.options["seed"], header.options["threshold"]) == ("two", 3, 1.0)
    assert all(len(line.tokens) == 1 for line in again.dynamo[1].passes)


def test_without_an_answer_there_is_nothing_to_decode_again():
    for ask in (PageService(scripted_pair()).decode_again, PageService(scripted_pair()).strip):
        with pytest.raises(ValueError, match="press Generate first"):
            next(ask(Chat(), SETTINGS))


def test_the_strip_shows_the_prompt_at_seven_thresholds_as_they_are_done():
    service = PageService(replace(scripted_pair(), audit=opinion))
    lines = list(service.strip(talk(service, "one"), SETTINGS))
    assert all(after.startswith(before) for before, after in itertools.pairwise(lines))
    announced, *rows, done = map(json.loads, lines[-1].splitlines())
    assert announced == {"thresholds": list(STRIP_THRESHOLDS)} and done == {"done": True}
    assert [row["threshold"] for row in rows] == list(STRIP_THRESHOLDS)
    assert rows[-1]["passes"] == rows[-1]["tokens"] > rows[0]["passes"]
    assert rows[0]["nats"] == 0.5 and rows[0]["below"] == 0.1


def test_presets_are_the_papers_ablation_and_are_recognised():
    assert preset_of(1, True, True) == next(iter(PRESETS)) == "mask + Otsu + blur"
    assert preset_of(0.5, True, True) == "mask at half strength"
    assert preset_of(0.55, True, True) == "custom"


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("seed", "x", "seed: "),
        ("max_new_tokens", 10**9, "max_new_tokens: "),
        ("max_new_tokens", float("nan"), "max_new_tokens: "),
        pytest.param("max_new_tokens", 10**5000, "max_new_tokens: .* got about 5001 digits", id="long"),
        ("top_k", None, "top_k: "),
        ("threshold", 7, "threshold: "),
    ],
)
def test_a_control_that_sends_nonsense_is_named(name, value, sentence):
    values = {"threshold": 0.5, "top_k": 50.0, "max_order": 3, "max_new_tokens": 96, "seed": 0, "blur": True}
    with pytest.raises(ValueError, match=sentence):
        Settings.from_controls(list(values), list({**values, name: value}.values()), SamplingOptions())


# ---- timing again


@pytest.fixture
def spreading(monkeypatch):
    """Every race is timed again."""
    monkeypatch.setattr(Race, "rounds", lambda race: 1)


def test_a_turn_is_timed_again_once_and_only_while_its_pair_is_loaded(spreading):
    service = PageService(scripted_pair())
    chat = talk(service, "one")
    assert [view.status == TIMING for view in service.time_again(chat)] == [True, False]
    assert not list(service.time_again(chat)) and not list(service.time_again(Chat()))
    chat = talk(service, "two")
    service.swap(scripted_pair())
    assert not list(service.time_again(chat)), "the race holds what was unloaded"
    timing = service.time_again(talk(service, "three"))
    assert next(timing).status == TIMING
    service.swap(scripted_pair())
    assert not list(timing), "or the old chat comes back under another model's name"
    assert list(service.answer(Chat(), "four", SETTINGS))[-1].status != TIMING, "the model is free again"


def test_a_turn_is_timed_again_where_its_audit_fails(spreading, caplog):
    def failing(prompt, reply):
        raise RuntimeError("out of memory")

    wired = Handlers(service := PageService(replace(scripted_pair(), audit=failing)), [])
    chat = talk(service, "one")
    (opinion, *_), *timed = wired.look_again(chat.base[-1].wire, chat.dynamo[-1].wire)
    assert opinion == "" and "out of memory" not in caplog.text
    assert [status == TIMING for *_, status in timed] == [True, False]


# ---- the audit


def test_the_audit_gives_every_token_of_dynamo_the_bases_opinion():
    service = PageService(replace(scripted_pair(), audit=opinion))
    chat = talk(service, "one")
    card = json.loads(service.audit(chat))
    texts = [text for line in chat.dynamo[-1].passes for text in line.texts]
    assert [token["text"] for token in card["tokens"]] == texts
    assert card["tokens"][1]["p"] == pytest.approx(0.002479, abs=1e-6)
    assert card["run"] == chat.dynamo[-1].header.run and card["top_k"] == 50
    assert card["dynamo"]["outside_top_k"] == pytest.approx(1 / len(texts))
    assert card["base"]["tokens"] == len(texts)


def test_no_audit_no_card():
    service = PageService(scripted_pair())
    assert service.audit(talk(service, "one")) == ""
    assert PageService(replace(scripted_pair(), audit=opinion)).audit(Chat()) == ""


def test_the_time_split_is_profiled_once():
    calls = []
    service = PageService(replace(scripted_pair(), profile=lambda: calls.append(1) or {"base": 1}))
    assert service.profile() == service.profile() == '{"base": 1}'
    assert len(calls) == 1
    assert PageService(scripted_pair()).profile() is None


def test_who_waits_for_the_time_split_leaves_threads_to_the_run_that_goes_on():
    """Each of them held one of Gradio's forty threads, without which the run could not go on."""
    service = PageService(replace(scripted_pair(), profile=lambda: {"base": 1}))
    with ThreadPoolExecutor(MOST_SEEKERS + 3) as visitors:
        with service.exclusive():
            asked = [visitors.submit(service.profile) for _ in range(MOST_SEEKERS + 3)]
            refused = [each for _, each in zip(range(3), as_completed(asked), strict=False)]
        for each in refused:
            with pytest.raises(Busy, match="being profiled for others"):
                each.result()
        assert [each.result() for each in asked if each not in refused] == ['{"base": 1}'] * MOST_SEEKERS
    with service.exclusive():
        assert service.profile() == '{"base": 1}'  # known now, and nobody waits


# ---- one run at a time


def test_a_second_run_waits_for_the_first_and_gives_up_in_words(monkeypatch):
    monkeypatch.setattr(service_module, "LOCK_SECONDS", 0.05)
    service = PageService(scripted_pair())
    first = service.answer(Chat(), "one", SETTINGS)
    next(first)
    with pytest.raises(Busy, match="busy with another visitor's run"):
        next(service.answer(Chat(), "two", SETTINGS))
    first.close()
    assert len(list(service.answer(Chat(), "two", SETTINGS))) > 1


def test_a_run_may_be_closed_by_another_thread():
    service = PageService(scripted_pair())
    running = service.answer(Chat(), "one", SETTINGS)
    next(running)
    closer = threading.Thread(target=running.close)
    closer.start()
    closer.join(60)
    next(service.answer(Chat(), "two", SETTINGS))


# ---- loading


def test_a_file_of_many_runs_takes_the_place_of_no_more_than_it_shows(tmp_path):
    """All of them were stored, and every other visitor's run made room."""
    service = PageService(scripted_pair())
    path, view = saved(tmp_path, service, "base", "dynamo")
    path.write_text(path.read_text(encoding="utf-8") * 200, encoding="utf-8")
    service.load(path)
    for wire in (view.base, view.dynamo):
        assert service.store.get_trace(read_trace(wire.splitlines()).header.run)


def saved(tmp_path, service: PageService, *lanes: str):
    *_, view = service.answer(Chat(), "one", SETTINGS)
    wires = {"base": view.base, "dynamo": view.dynamo}
    text = "".join(service.store.get_trace(read_trace(wires[lane].splitlines()).header.run) for lane in lanes)
    path = tmp_path / "saved.ndjson"
    path.write_text(text, encoding="utf-8")
    return path, view


def test_a_saved_trace_loads_with_its_joints_under_a_new_id(tmp_path):
    path, view = saved(tmp_path, PageService(scripted_pair()), "base", "dynamo")
    other = PageService(scripted_pair())
    shown = other.load(path)
    before, after = (read_trace(each.dynamo.splitlines()) for each in (view, shown))
    assert after.passes == before.passes and after.header.run != before.header.run
    assert read_trace(shown.base.splitlines()).header.recorded == "loaded from a file"
    assert json.loads(shown.inspector)["joint"]["grid"]
    assert other.store.get_pass(after.header.run, 0)


def test_one_lane_alone_loads(tmp_path):
    path, _ = saved(tmp_path, PageService(scripted_pair()), "base")
    shown = PageService(scripted_pair()).load(path)
    assert shown.dynamo == shown.inspector == "" and shown.base


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "bad.ndjson: line 1: the trace is empty"),
        (b"\xff\xfe", "bad.ndjson: .*utf-8"),
        (
            b'{"format":1,"run":"r","lane":"blind","model":"m","options":{},"prompt":"p"}\n',
            "no run of the lanes",
        ),
        (b'{"format":2}', "line 1: trace format 2"),
        (b"[" * 200_000, "bad.ndjson"),
        (b" " * 5_000_001, "larger than 5,000,000 bytes"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_in_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "bad.ndjson"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        PageService(scripted_pair()).load(path)


# ---- the blind duel


def duel(answer: str = HOSTILE) -> Duel:
    return Duel.between(PageService(scripted_pair(answer)).lanes_run("which?", SETTINGS))


def test_nothing_that_leaves_before_the_vote_tells_the_lanes_apart():
    left, right = duel().blind_wires()
    for wire in (left, right):
        trace = read_trace(wire.splitlines())
        assert (trace.header.lane, trace.header.engine, trace.header.options) == ("blind", "", {})
        assert len(trace.passes) == 1
        assert trace.passes[0].milliseconds == 0 and trace.passes[0].backoffs == ()
    strip_ids = lambda wire: wire.replace(read_runs(wire.splitlines())[0].header.run, "")  # noqa: E731
    assert strip_ids(left) == strip_ids(right)  # the script says the same in both lanes


def test_sides_are_drawn_and_choices_follow_them():
    sides = {duel("a b").left for _ in range(60)}
    assert sides == {"base", "dynamo"}
    one = replace(duel("a b"), left="dynamo")
    assert [one.outcome(choice) for choice in ("left", "right", "tie")] == ["dynamo", "base", "tie"]
    with pytest.raises(ValueError, match="choice: "):
        one.outcome("both")


def test_a_duel_knows_its_speed_up():
    one = duel("a b c d e f g h i j k l m n o p q r s t u v w x y z")
    assert one.speed_up > 1 and one.tokens_per_forward > 1
    assert one.options["opponent"] == "loop" and one.options["threshold"] == 0.5


# ---- another pair while others generate


def test_a_run_keeps_its_pair_however_often_pairs_are_swapped():
    """Runs are one pairs from first to last however often pairs are swapped."""
    pairs = {name: scripted_pair(f"{name} " * 30) for name in ("first", "second")}
    pairs = {name: replace(pair, name=name) for name, pair in pairs.items()}
    service = PageService(pairs["first"])
    made, over = [], threading.Event()

    def ask():
        while not over.is_set():
            made.append(service.lanes_run("hello", Settings(SamplingOptions(), 96, len(made))))

    asking = [threading.Thread(target=ask) for _ in range(4)]
    for each in asking:
        each.start()
    for number in itertools.count():
        service.swap(pairs[("second", "first")[number % 2]])
        time.sleep(0.01)
        if number >= 60 and {lanes["dynamo"].header.model for lanes in [*made]} == set(pairs):
            break
    over.set()
    for each in asking:
        each.join(60)
    assert {lanes["dynamo"].header.model for lanes in made} == set(pairs)
    for lanes in made:
        for lane in lanes.values():
            name = lanes["base"].header.model
            assert lane.header.model == name and lane.text.split() == [name] * 30
