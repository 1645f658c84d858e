"""The page's own components: `gr.HTML`s whose template is constant and whose scripts draw.

A value is one string and is drawn by the script with `textContent`. It must never reach a template: Gradio
runs `${...}` found in a template's value as JavaScript and sets the rest as HTML, and model text may hold
both. The scripts are plain files in `assets/`; what they share is put before each of them, as Gradio runs a
script as the body of one function. These are functions and not subclasses because Gradio writes a `.pyi` file
beside every module that subclasses a component.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import gradio as gr

ASSETS = Path(__file__).parents[2] / "assets"

_PANE = """
<section class="dm-card dm-pane" data-kind="{kind}" data-state="empty" data-title="{title}"
  aria-label="{title}">
  <header class="dm-pane-head"><h2>{title}</h2><span>{subtitle}</span></header>
  <div class="dm-text" role="{role}" aria-label="{title}: text" data-empty="{empty}"></div>
  <div class="dm-strip" aria-hidden="true"></div>
  <footer class="dm-footer"></footer>
  <div class="dm-tip" role="tooltip" hidden></div>
  <div class="dm-announce" role="status" aria-live="polite"></div>
</section>
"""

_RACE = """
<section class="dm-race" data-measured="false" aria-label="Result of the race">
  <dl class="dm-clocks">
    <div><dt>tokens per forward pass</dt><dd class="dm-passes"></dd><dd class="dm-passes-note"></dd></div>
    <div><dt>the base model's speed</dt><dd class="dm-speed"></dd><dd class="dm-speed-note"></dd></div>
  </dl>
  <div class="dm-race-side">
    <p class="dm-status"></p>
    <p class="dm-replay-row"><button type="button" class="dm-button dm-replay" hidden></button>
    <span class="dm-pace"></span></p>
  </div>
</section>
"""

_STAGE = """
<figure class="dm-stage dm-stage-{name}">
  <figcaption><b>{number}. {title}</b><span class="dm-{name}-caption">{caption}</span></figcaption>
  <table role="grid" aria-label="{title}: rows are the first token, columns the second"></table>
</figure>
"""

_INSPECTOR = """
<section class="dm-card dm-inspector" data-state="empty" aria-label="Inspector of one forward pass">
  <header class="dm-inspector-head">
    <h2><span class="dm-title">Inside a forward pass</span> <span class="dm-subtitle"></span></h2>
    <div class="dm-inspector-buttons">
      <button type="button" class="dm-button dm-previous" aria-label="Previous pass" disabled>‹</button>
      <button type="button" class="dm-button dm-next" aria-label="Next pass" disabled>›</button>
      <button type="button" class="dm-button dm-live" aria-pressed="true" hidden></button>
    </div>
  </header>
  <p class="dm-scale" aria-hidden="true">
    <span>rows: next token</span><span>columns: the one after</span>
    <span><i class="dm-ramp"></i>0.01 % to 100 %, log scale</span>
    <span><i class="dm-cell gone"></i>removed</span>
    <span><i class="dm-cell picked"></i>sampled</span>
  </p>
  <div class="dm-stages">{stages}</div>
  <p class="dm-readout" aria-live="off">Point at a cell to read it in all three stages.</p>
  <div class="dm-explanation">
    <div class="dm-notes"><p>Every pass of DynaMo appears here while it happens. Click a chunk of its text to
      come back to the pass it came from, then move the threshold to see what it would have kept.</p></div>
    <div class="dm-third" hidden><h3 class="dm-third-title"></h3><ol class="dm-third-list"></ol></div>
  </div>
</section>
"""

_STAGES = (
    ("product", 1, "Product", "each head proposes its own token; multiply"),
    ("mask", 2, "Mask", "keep pairs that really occur together"),
    ("threshold", 3, "Threshold", "drop what is not likely enough; nothing left: back off"),
)


@cache
def script(*names: str) -> str:
    """Scripts of `assets/`, one after the other, as one function body."""
    return "\n".join((ASSETS / name).read_text(encoding="utf-8") for name in names)


def token_pane(*, kind: str, title: str, subtitle: str, empty: str, elem_id: str) -> gr.HTML:
    """One lane. Its value: the lane's trace so far, NDJSON."""
    role = "group" if kind == "dynamo" else "list"
    template = _PANE.format(kind=kind, title=title, subtitle=subtitle, empty=empty, role=role)
    return _drawn("", template, script("joint.js", "pane.js"), elem_id=elem_id)


def race_bar(status: str, *, elem_id: str) -> gr.HTML:
    """Both clocks and the replay. Its value: one sentence of status."""
    return _drawn(status, _RACE, script("joint.js", "race.js"), elem_id=elem_id)


def joint_inspector(get_pass: Callable[[str, int], str | None], *, elem_id: str) -> gr.HTML:
    """One pass in three stages. Its value: the newest pass (`presenter.inspector_value`).

    get_pass: (run, index) to the value of an older pass, None where it is no longer known.
    """
    stages = "".join(
        _STAGE.format(name=name, number=number, title=title, caption=caption)
        for name, number, title, caption in _STAGES
    )
    return _drawn(
        "",
        _INSPECTOR.format(stages=stages),
        script("joint.js", "inspector.js"),
        elem_id=elem_id,
        server_functions=[served(get_pass)],
    )


def _drawn(value: str, template: str, source: str, **kwargs: Any) -> gr.HTML:
    return gr.HTML(value, html_template=template, js_on_load=source, apply_default_css=False, **kwargs)


def served(lookup: Callable[[str, int], str | None]) -> Callable[[Any], str | None]:
    """`lookup` as a server function: one JSON argument that anyone on the network may have made up."""

    def get_pass(key: Any) -> str | None:
        match key:
            case [str(run), int(index)]:
                return lookup(run, index)
            case _:
                return None

    return get_pass
