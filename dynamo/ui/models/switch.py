"""The line in the page's head that says which model answers, and the picker of pairs beside it."""

from __future__ import annotations

from typing import Any

import gradio as gr

from dynamo.common.bidi import in_html
from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.models.manager import ModelManager


def model_line(pair: ModelPair, named: bool) -> str:
    """Name where it is not said beside it, size, licence, and what it is good for."""
    about = pair.about
    base, added = pair.parameters
    facts = [
        f"{_millions(base)} parameters + {_millions(added)} of heads" if base else "",
        f"in {pair.bits} bits" if pair.bits else "",
        about.licence,
        about.good_for,
    ]
    name = [f"<b><bdi>{in_html(about.title or pair.name)}</bdi></b>"] if named else []
    said = " ".join(name + [f"<span>{in_html(fact)}</span>" for fact in facts if fact])
    return f'<p class="dm-model">{said}</p>'


def _millions(count: int) -> str:
    if count >= 1e9:
        return f"{count / 1e9:.1f} B"
    return f"{count / 1e6:.0f} M" if count >= 1e8 else f"{count / 1e6:.1f} M"


class ModelSwitch:
    """The pairs that this machine can run, in one list; status: where it is said how far a load has come.

    What is chosen in it is what is being loaded, or else what is loaded.
    """

    def __init__(self, manager: ModelManager, status: gr.HTML):
        self._manager, self.status = manager, status
        self.picked = gr.Dropdown(
            **self._choices(), label="Model, for every visitor", container=False, min_width=220, scale=0,
            elem_id="model-switch",
        )  # fmt: skip

    def update(self, with_value: bool) -> dict[Any, Any]:
        """What is there by now, and with_value: what is chosen."""
        now = self._choices()
        return gr.update(**now) if with_value else gr.update(choices=now["choices"])

    def refusal(self, name: str) -> str:
        """Why it cannot be loaded right now; "" where it can, or is being loaded."""
        loading = self._manager.loading
        if loading in (None, name):
            return ""
        titles = self._titles()
        return f"{titles.get(loading, loading)} is being loaded; {titles.get(name, name)} can be picked then."

    def _titles(self) -> dict[str, str]:
        return {row.name: row.title for row in self._manager.pairs() if not row.reason}

    def _choices(self) -> dict[str, Any]:
        chosen = self._manager.loading or self._manager.loaded
        titles = self._titles()
        names = titles if chosen in titles else {chosen: chosen, **titles}
        return {"choices": [(title, name) for name, title in names.items()], "value": chosen}
