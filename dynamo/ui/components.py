"""The page's own components: `gr.HTML`s whose template is constant and whose scripts draw.

A value is one string and is drawn by the script with `textContent`. It must never reach a template: Gradio
runs `${...}` found in a template's value as JavaScript and sets the rest as HTML, and model text may hold
both. A component is a folder of `assets/`: its HTML, its style, its scripts. What scripts share is put before
each of them, as Gradio runs a component's script as the body of one function. These are functions and not
subclasses because Gradio writes a `.pyi` file beside every module that subclasses a component.
"""

from __future__ import annotations

import html
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.exceptions import HTTPException

from dynamo.ui.server.limits import Busy

ASSETS = Path(__file__).parents[2] / "assets"

# Scripts of each component after `common/`, in order; functions of the earlier ones are known to the later.
SCRIPTS = {
    "pane": (
        "transcript.js",
        "drawing.js",
        "tip.js",
        "sight.js",
        "choosing.js",
        "saving.js",
        "preview.js",
        "fork.js",
        "pane.js",
    ),
    "race": (
        "clocks.js",
        "player.js",
        "split.js",
        "why.js",
        "link.js",
        "fork.js",
        "picture.js",
        "gif.js",
        "saving.js",
        "race.js",
    ),
    "timeline": ("columns.js", "timeline.js"),
    "inspector": ("words.js", "passes.js", "grids.js", "notes.js", "panel.js", "inspector.js"),
    "audit": ("words.js", "audit.js"),
    "strip": ("words.js", "strip.js"),
    "picker": ("picker.js",),
}
MOST_PASSES_ASKED = 512

# Options of events: a run of the model, what needs it after a run, a call that is answered without the queue,
# a script in the browser.
RUN = {
    "concurrency_id": "model",
    "concurrency_limit": 1,
    "trigger_mode": "once",
    "show_progress": "minimal",
    "scroll_to_output": False,
    "api_visibility": "private",
}
LATER = {**RUN, "trigger_mode": "multiple", "show_progress": "hidden"}
QUIET = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
IN_BROWSER = {"api_visibility": "private"}


@cache
def script(name: str) -> str:
    """The script of one component, as one function body."""
    files = [*sorted((ASSETS / "common").glob("*.js")), *(ASSETS / name / file for file in SCRIPTS[name])]
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


@cache
def style() -> str:
    """All style sheets of the page, the common one first."""
    files = sorted(ASSETS.glob("*/*.css"), key=lambda file: (file.parent.name != "common", file))
    return "\n".join(file.read_text(encoding="utf-8") for file in files)


def part(name: str, value: str = "", *, elem_id: str, **kwargs: Any) -> gr.HTML:
    """The component of the folder `assets/<name>`; further keywords go to `gr.HTML`."""
    return gr.HTML(
        value,
        html_template=(ASSETS / name / f"{name}.html").read_text(encoding="utf-8"),
        js_on_load=script(name),
        apply_default_css=False,
        elem_id=elem_id,
        **kwargs,
    )


def token_pane(side: str, value: str, get_trace: Callable[[str], str | None], *, elem_id: str) -> gr.HTML:
    """One lane of the chat. Its value: the traces of its runs so far, NDJSON, one run after the other.

    side: "base" or "dynamo", what the pane is for; get_trace: a run's id to its whole trace, joints included.
    """
    template = (ASSETS / "pane" / "pane.html").read_text(encoding="utf-8")
    return gr.HTML(
        value,
        html_template=template.replace("{side}", html.escape(side)),
        js_on_load=script("pane"),
        apply_default_css=False,
        elem_id=elem_id,
        server_functions=[served_trace(get_trace)],
    )


def race_bar(value: str, get_split: Callable[[], str | None], *, elem_id: str) -> gr.HTML:
    """Both clocks and the player. Its value: one sentence of status.

    get_split: where the time of a pass goes, JSON, None where it is not known.
    """
    return part("race", value, elem_id=elem_id, server_functions=[served_split(get_split)])


def joint_inspector(get_pass: Callable[[str, int], str | None], *, elem_id: str, value: str = "") -> gr.HTML:
    """One pass in three stages. Its value: the newest pass (`presenter.inspector_value`).

    get_pass: (run, index) to the value of an older pass, None where it is no longer known.
    """
    return part("inspector", value, elem_id=elem_id, server_functions=[served_passes(get_pass)])


# What a server function gets is one JSON argument that anyone on the network may have made up.


def served_passes(lookup: Callable[[str, int], str | None]) -> Callable[[Any], list[str | None]]:
    """`lookup` as the server function `get_passes([run, [index, ..]])`; what is not known is None."""

    def get_passes(key: Any) -> list[str | None]:
        match key:
            case [str(run), [*indices]] if len(indices) <= MOST_PASSES_ASKED:
                return [lookup(run, index) if type(index) is int else None for index in indices]
            case _:
                return []

    return get_passes


def served_trace(lookup: Callable[[str], str | None]) -> Callable[[Any], str | None]:
    """`lookup` as the server function `get_trace(run)`."""

    def get_trace(run: Any) -> str | None:
        return lookup(run) if isinstance(run, str) else None

    return get_trace


def served_split(lookup: Callable[[], str | None]) -> Callable[[Any], str | None]:
    """`lookup` as the server function `get_split()`; what is sent along is not looked at."""

    def get_split(_: Any = None) -> str | None:
        try:
            return lookup()
        except Busy as error:  # Gradio would log a traceback for every call
            raise HTTPException(503, str(error)) from None

    return get_split


def ends_of(event: Any) -> tuple[Any, Any]:
    """Listeners to an event's end, come what may: Gradio's page runs a `then` only where nothing failed."""
    return event.then, event.failure
