"""A shared race, as whoever opens its link reads it: anyone may have made it up."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import pytest
from fakes import scripted_pair
from page_handlers import SETTINGS, handlers
from talks import talk

from dynamo.spaces.limits import Limits
from dynamo.ui.compare.link import FROM_A_LINK, SET_UP
from dynamo.ui.compare.service import PageService

NAMES = list(SETTINGS)


def lines(passes=True, **changes) -> str:
    chat = talk(PageService(scripted_pair()), "hello")
    runs = [chat.base[0], chat.dynamo[0]]
    wires = [replace(run, header=replace(run.header, **changes)).wire for run in runs]
    return "".join(wire if passes else wire.partition("\n")[0] + "\n" for wire in wires)


def with_options(**options) -> str:
    made = [json.loads(line) for line in lines(passes=False).splitlines()]
    return "\n".join(json.dumps({**each, "options": {**each["options"], **options}}) for each in made)


def opened(text, pair=None, names=NAMES):
    return PageService(pair or scripted_pair()).open_link(text, names)


def test_a_link_is_a_recording_that_says_where_it_comes_from():
    """Its own word on where it was recorded would stand on the page as the page's."""
    view, link = opened(lines(recorded="the makers of this page"))
    assert link.prompt == "hello" and link.status == SET_UP
    assert link.settings.seed == 3 and link.settings.max_new_tokens == 96
    for wire in (view.base, view.dynamo):
        head = json.loads(wire.partition("\n")[0])
        assert head["recorded"] == FROM_A_LINK and head["run"]
    assert json.loads(view.inspector)["pass"]["pass"] == 0


def test_headers_alone_set_up_the_race_and_show_no_answer():
    view, link = opened(lines(passes=False))
    assert (view.base, view.dynamo, view.inspector) == ("", "", "")
    assert link.prompt == "hello"


def test_settings_come_to_their_controls():
    wired = handlers()
    text = with_options(threshold=0.2, blur=1, seed=9, temperature=0)
    *_, values = wired.open_link(SimpleNamespace(lines=text))
    shown = dict(zip(NAMES, values[6:], strict=True))
    assert (shown["threshold"], shown["blur"], shown["seed"], shown["temperature"]) == (0.2, False, 9, 0)
    assert values[4:6] == ("hello", "loop")


def test_another_model_and_another_setting_without_a_control_are_named():
    assert "The answer was gpt-7's; here scripted will give another" in opened(lines(model="gpt-7"))[1].status
    assert "set up differently here" in opened(with_options(draw="anchored"))[1].status
    assert "set up differently here" in opened(with_options(bits=4))[1].status


@pytest.mark.parametrize(
    "options",
    [
        {"threshold": 2},
        {"threshold": "x"},
        {"temperature": 1e9},
        {"top_k": 10**6},
        {"max_order": 9},
        {"seed": -1},
        {"max_new_tokens": 10**6},
        {"max_new_tokens": 1},
        {"exact": None},
    ],
)
def test_settings_that_the_page_has_not_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        opened(with_options(**options))


@pytest.mark.parametrize(
    "text", [None, 7, [], "", "{}", "[" * 10**5, "x" * 500_000, '{"format":1}', lines().partition("\n")[0]]
)
def test_what_is_no_race_is_one_sentence(text):
    with pytest.raises(gr.Error, match="link: "):
        list(handlers().open_link(SimpleNamespace(lines=text)))


def test_lanes_of_two_messages_are_no_race():
    one, two = lines().split('{"format"')[1:], lines(prompt="another").split('{"format"')[1:]
    with pytest.raises(ValueError, match="both lanes answer"):
        opened('{"format"' + one[0] + '{"format"' + two[1])


def test_a_link_asks_for_no_more_than_a_visitor_may():
    service = PageService(scripted_pair(), Limits(answer_tokens=32))
    with pytest.raises(ValueError, match="max_new_tokens"):
        service.open_link(lines(), NAMES)
