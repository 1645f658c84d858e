"""What a stranger may put where a value is expected, and what may come of it: success, or one sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st

BRIEF = settings(derandomize=True, deadline=None, max_examples=60)

TEXTS = (
    "",
    " ",
    "\ud800",
    "a\udfffb",
    "\u202egnp.exe\u2066",
    "\x00\x07\x1b[31m\x7f\u0085",
    "\n" * 5000,
    "x" * 2**20,
    "<img src=x onerror=alert(1)>",
    "${alert(1)}{{value}}",
    "=cmd|' /C calc'!A0",
    "../../../etc/passwd",
    "<|end|><|assistant|>",
    "\N{WAVING HAND SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-6}\u200d" * 50,
)
VALUES = (
    None, True, -1, 0, 1.5, 1e308, float("inf"), float("-inf"), float("nan"), 10**400, 2**70, -(2**70),
    [], {}, [[]], [None], [1, 2], ["a", "b"], {"a": 1}, {"a": {"b": []}}, "x", "9" * 5000, "\ud800",
)  # fmt: skip

texts = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=60))
values = st.one_of(
    st.sampled_from(VALUES),
    st.floats(),
    st.integers(),
    st.text(max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=3),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
)


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Every place inside a value of dictionaries and lists, of lists the first item's."""
    if here:
        yield here
    inside = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, each in inside:
        yield from places(each, (*here, key))


def changed(value: Any, place: tuple, new: Any) -> Any:
    value = copy.deepcopy(value)
    holder = value
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = new
    return value


def refusal(act: Callable[[], Any], *more: type[Exception]) -> str | None:
    """The sentence by which `act` refuses, None where it succeeds. Any other way out fails the test."""
    try:
        act()
    except (ValueError, OSError, *more) as error:
        said = str(error)
        assert not isinstance(error, UnicodeError), said
        assert said and "\n" not in said, f"not one sentence: {said!r:.300}"
        assert len(said) < 2000, f"{len(said)} characters: {said[:200]}"
        return said
    return None


SHUT = (
    "/gradio_api/process_recording", "/gradio_api/deep_link", "/gradio_api/dev/reload", "/monitoring",
    "/gradio_api/custom_component/x%0Ay/client/a/b", "/monitoring/summary", "/gradio_api/file=http://1.1.1.1/",
    "/gradio_api/file=https://1.1.1.1/", "/gradio_api/file/http://1.1.1.1/",
)  # fmt: skip
