"""The controls of the sampler: what stands on the page, and what a visitor's values become.

Defaults are those of `SamplingOptions`; a slider sends 50 or 50.0 as it likes, and a program sends anything.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import gradio as gr

from dynamo.common.validation import short_repr
from dynamo.sampling.options import SamplingOptions
from dynamo.ui.server.limits import MOST_TOKENS

LONGEST_ANSWER = 96  # tokens, to begin with
LARGEST_SEED = 2**31 - 1
MOST_STOPS, LONGEST_STOP = 16, 200  # stop strings, and characters of one

# The paper's Table 9: what each stage of the correction is worth. Values: mask_strength, adaptive, blur.
PRESETS: dict[str, tuple[float, bool, bool]] = {
    "mask + Otsu + blur": (1.0, True, True),
    "mask + Otsu": (1.0, True, False),
    "mask only": (1.0, False, False),
    "mask at half strength": (0.5, True, True),
    "no mask": (0.0, True, True),
}
CUSTOM = "custom"

# What the sliders take, where it depends on no pair.
RANGES: dict[str, tuple[float, float]] = {
    "threshold": (0, 1),
    "mask_strength": (0, 2),
    "top_k": (2, 100),
    "repetition_penalty": (1, 2),
    "temperature": (0, 2),
    "max_new_tokens": (8, MOST_TOKENS),
}


def orders(heads: int) -> tuple[int, int]:
    """What the slider of tokens per pass takes: two values at least, or Gradio would not draw it."""
    return 1, max(heads, 2)


@dataclass(frozen=True)
class Settings:
    """One visitor's settings, checked. stop: strings that end the text where they begin."""

    options: SamplingOptions
    max_new_tokens: int
    seed: int
    stop: tuple[str, ...] = ()

    def __post_init__(self):
        for name in ("max_new_tokens", "seed"):
            value = getattr(self, name)
            if type(value) is not int:
                raise ValueError(f"{name}: expected a whole number, got {short_repr(value)}")
        if not 0 <= self.seed <= LARGEST_SEED:
            raise ValueError(f"seed: expected 0 to {LARGEST_SEED}, got {short_repr(self.seed)}")
        if not 1 <= self.max_new_tokens <= MOST_TOKENS:
            raise ValueError(
                f"max_new_tokens: expected 1 to {MOST_TOKENS} on this page, "
                f"got {short_repr(self.max_new_tokens)}"
            )
        fit = all(isinstance(each, str) and 1 <= len(each) <= LONGEST_STOP for each in self.stop)
        if not fit or len(self.stop) > MOST_STOPS:
            raise ValueError(
                f"stop: expected up to {MOST_STOPS} strings of 1 to {LONGEST_STOP} characters, "
                f"got {short_repr(self.stop)}"
            )

    @classmethod
    def from_controls(cls, names: Sequence[str], values: Sequence[Any], chosen: SamplingOptions) -> Settings:
        """names, values: of the controls, in their order; what no control sets is as chosen for the pair.

        Raises ValueError naming the option."""
        given = dict(zip(names, values, strict=True))
        longest = _whole("max_new_tokens", given.pop("max_new_tokens"))
        seed = _whole("seed", given.pop("seed") or 0)
        for name in ("top_k", "max_order"):
            given[name] = _whole(name, given[name])
        given["blur"] = 3 if given["blur"] else 1
        return cls(replace(chosen, **given), longest, seed)


def _whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected a whole number, got {short_repr(value)}") from None


def shown(options: SamplingOptions) -> dict[str, Any]:
    """What each option's control shows, by name."""
    return asdict(options) | {"blur": options.blur > 1}


def threshold_dial(chosen: SamplingOptions) -> gr.Slider:
    """The one control that everybody should try, off where drafts are verified."""
    return gr.Slider(
        *RANGES["threshold"],
        chosen.threshold,
        step=0.01,
        **dial_state(chosen.exact),
        min_width=220,
        buttons=["reset"],
        elem_id="threshold",
    )


def dial_state(exact: bool) -> dict[str, Any]:
    """What the dial says and whether it turns."""
    if exact:
        return {
            "label": "Back-off threshold ε: not used in exact mode",
            "info": "Every draft is verified instead. Untick exact mode to turn this dial.",
            "interactive": False,
        }
    return {
        "label": "Back-off threshold ε: the quality dial",
        "info": "Drag to preview; release to regenerate.",
        "interactive": True,
    }


def exact_switch(chosen: SamplingOptions) -> gr.Checkbox:
    return gr.Checkbox(
        chosen.exact,
        label="Exact mode: drafts are verified by the next pass",
        info="Text as if written one token at a time; ε is not used",
        container=False,
        min_width=180,
        elem_id="exact",
    )


def settings_panel(
    heads: int, default: SamplingOptions, most_tokens: int | None = None
) -> dict[str, gr.components.Component]:
    """All other controls by the name of the option that they set; call it inside a `gr.Blocks`."""
    shortest, longest = RANGES["max_new_tokens"]
    longest = min(longest, most_tokens or longest)
    ranges = {
        **RANGES,
        "max_order": orders(heads),
        "max_new_tokens": (min(shortest, longest), longest),
    }
    controls: dict[str, gr.components.Component] = {}

    def slider(name: str, step: float, label: str, info: str) -> None:
        low, high = ranges[name]
        value = min(getattr(default, name, LONGEST_ANSWER), high)
        controls[name] = gr.Slider(
            low, high, value, step=step, label=label, info=info, min_width=260, buttons=["reset"]
        )

    def checkbox(name: str, value: bool, label: str, info: str) -> None:
        controls[name] = gr.Checkbox(value, label=label, info=info, min_width=260, container=False)

    with gr.Row():
        slider("mask_strength", 0.05, "Mask strength", "0 is the plain product, no mask")
        slider("top_k", 1, "Candidates per head", "Top-k: how many tokens are multiplied")
        with gr.Column(min_width=260):
            checkbox(
                "adaptive", default.adaptive, "Adaptive threshold", "Otsu: also drop what stands far below"
            )
            checkbox("blur", default.blur > 1, "Blur before it", "Smooth the grid that Otsu looks at")
    with gr.Row():
        slider("max_order", 1, "Tokens per pass, at most", "1 asks for single tokens")
        slider("repetition_penalty", 0.05, "Repetition penalty", "1 lets words repeat freely")
        slider("temperature", 0.05, "Temperature", "0 takes the likeliest chunk")
    with gr.Row():
        slider("max_new_tokens", 8, "Longest answer", "In tokens; most end earlier")
        controls["seed"] = gr.Number(
            0, label="Seed", info="Same seed, same text", precision=0, minimum=0, min_width=260
        )
    return controls


def preset_of(mask_strength: float, adaptive: bool, blur: bool) -> str:
    """Which preset the three controls spell."""
    chosen = (float(mask_strength), bool(adaptive), bool(blur))
    return next((name for name, values in PRESETS.items() if values == chosen), CUSTOM)
