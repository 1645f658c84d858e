"""Text that runs the other way, and invisible commands of direction, inside our own sentences."""

from __future__ import annotations

import html

import numpy as np
import pytest
from fakes import COMMANDS
from figures import every_figure
from hostile import BRIEF
from hypothesis import given
from hypothesis import strategies as st

from dynamo.common.bidi import bidi_isolate, in_html, spell_bidi_controls
from dynamo.ui.layout import _about, notice_html
from dynamo.ui.models.tab import failed

texts = st.text(st.sampled_from(COMMANDS + "ab 1<&\u05d0\u0627\u0661\u200f\n"))


@BRIEF
@given(texts)
def test_no_command_is_left_and_nothing_else_is_lost(text):
    plain = spell_bidi_controls(text)
    assert not set(plain) & set(COMMANDS)
    for command in COMMANDS:
        assert plain.count(f"⟨U+{ord(command):X}⟩") == text.count(command)
        plain = plain.replace(f"⟨U+{ord(command):X}⟩", "")
    assert plain == "".join(each for each in text if each not in COMMANDS)


@BRIEF
@given(texts)
def test_only_what_runs_from_the_right_is_isolated(text):
    """What runs from the right stands by itself and the rest stays as it is."""
    turned = any(each in "\u05d0\u0627\u0661\u200f" for each in text)
    assert bidi_isolate(text) == (
        f"\u2068{spell_bidi_controls(text)}\u2069" if turned else spell_bidi_controls(text)
    )
    assert html.unescape(in_html(text)) == bidi_isolate(text)


def strings(value):
    if isinstance(value, str):
        yield value
    elif isinstance(value, np.ndarray) and value.dtype == object:
        yield from strings(value.tolist())
    elif isinstance(value, dict):
        for each in value.values():
            yield from strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from strings(each)


def test_no_label_of_a_figure_holds_a_command():
    """Plotly draws labels into the page as they come, several in a line."""
    found = [each for figure in every_figure("a\u202eb\u2066") for each in strings(figure.to_dict())]
    assert any("a⟨U+202E⟩b⟨U+2066⟩" in each for each in found)
    assert not [each for each in found if set(each) & set(COMMANDS)]


@pytest.mark.parametrize("written", [failed, notice_html, _about], ids=lambda function: function.__name__)
def test_no_sentence_of_the_page_holds_a_command(written):
    assert "⟨U+202E⟩gpj" in written("photo\u202egpj")
