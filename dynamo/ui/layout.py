"""The page, put together: what stands where, and which event calls what.

The race is the one handler with work in it. It runs one at a time, as two races on one machine would falsify
each other's clocks; other visitors wait in the queue and see their place in it.
"""

from __future__ import annotations

import html
import json
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import gradio as gr

from dynamo.sampler import SamplingOptions
from dynamo.ui.components import ASSETS, joint_inspector, race_bar, token_pane
from dynamo.ui.contenders import Contenders
from dynamo.ui.presenter import Race, RunStore

log = logging.getLogger(__name__)

TITLE = "DynaMo: several tokens per forward pass"
LONGEST_PROMPT = 2000  # characters; the engine counts tokens, this only stops pasted books
LONGEST_ANSWER = 96  # tokens, to begin with

EMPTY_PROMPT = "Type a message first, or pick an example below."
STOPPED = "Stopped. What was generated so far stays on screen."
READY = "Press Generate: both models answer the same prompt, each at its own measured pace."

_HEADER = """
<header class="dm-header">
  <h1>DynaMo</h1>
  <p>A language model runs once for every token. DynaMo proposes the next <b>two or three tokens in one
  forward pass</b>, keeps what belongs together, and <b>backs off</b> to fewer when it is not sure.</p>
</header>
"""

_LEGEND = """
<p class="dm-legend" aria-label="Legend"><span>One forward pass emitted</span>
  <span class="dm-chunk size-1 backed-off">one</span>
  <span class="dm-chunk size-2"><span class="dm-token">two </span><span class="dm-token">tokens</span></span>
  <span class="dm-chunk size-3"><span class="dm-token">three </span><span class="dm-token">tokens </span><span
    class="dm-token">together</span></span>
  <span class="dm-legend-note">dotted: it tried more and backed off</span>
</p>
"""

_CLOSE_SETTINGS_ON_PHONES = (
    "() => { if (innerWidth < 640) document.querySelector('#settings button')?.click(); }"
)
_ENABLE_IF_PROMPT = "(prompt) => ({ __type__: 'update', interactive: Boolean(prompt?.trim()) })"
_DISABLE = "() => ({ __type__: 'update', interactive: false })"
_TO_BUS = "(value) => window.dynamoBus?.dispatchEvent(new CustomEvent('{name}', {{ detail: value }}))"


def build_demo(contenders: Contenders) -> gr.Blocks:
    """The page for one loaded pair. `.launch(**launch_options())` serves it."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # or Gradio calls home when it launches
    store = RunStore()
    with gr.Blocks(title=TITLE) as demo:
        gr.HTML(_HEADER)
        with gr.Tabs():
            with gr.Tab("Compare"):
                _compare_tab(contenders, store)
            with gr.Tab("About"):
                gr.HTML(_about(contenders.description), apply_default_css=False)
        demo.load(None, js=_CLOSE_SETTINGS_ON_PHONES, api_visibility="private")
    return demo.queue(max_size=20)


def launch_options() -> dict[str, Any]:
    """How the page is served: its style, and nothing that leaves the machine or keeps prompts."""
    return {
        "theme": _theme(),
        # Not `css=`: Gradio rewrites every selector of it, and breaks those in media queries.
        "head": f"<style>{(ASSETS / 'style.css').read_text(encoding='utf-8')}</style>",
        "footer_links": ["settings"],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
        # Someone sits at this terminal; on a Space and under tests nobody does.
        "inbrowser": sys.stdout.isatty(),
    }


def _compare_tab(contenders: Contenders, store: RunStore) -> None:
    prompt, generate, stop = _prompt_row()
    bar = race_bar(READY, elem_id="race")
    gr.HTML(_LEGEND)
    base, dynamo = _panes()
    settings = _settings()
    inspector = joint_inspector(store.get, elem_id="inspector")

    def race(text: str, *values: Any) -> Iterator[tuple[str, str, str, str]]:
        yield from _race(contenders, store, text, dict(zip(settings, values, strict=True)))

    start = [generate.click, prompt.submit]
    gr.on(start, None, prompt, stop, js=_ENABLE_IF_PROMPT, api_visibility="private")
    running = gr.on(
        start,
        race,
        [prompt, *settings.values()],
        [base, dynamo, inspector, bar],
        validator=_validate,
        trigger_mode="once",
        concurrency_id="model",
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=bar,
        scroll_to_output=False,
        api_visibility="private",
    )
    running.then(None, None, stop, js=_DISABLE, api_visibility="private")
    # The panes are told first: what Gradio still delivers of a cancelled run does not undo it.
    stop.click(None, js=_TO_BUS.format(name="stop"), cancels=[running], api_visibility="private").then(
        lambda: (STOPPED, gr.update(interactive=False)),
        None,
        [bar, stop],
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )
    threshold = settings["threshold"]
    threshold.change(None, threshold, None, js=_TO_BUS.format(name="threshold"), api_visibility="private")


def _prompt_row() -> tuple[gr.Textbox, gr.Button, gr.Button]:
    examples = json.loads((ASSETS / "examples.json").read_text(encoding="utf-8"))
    with gr.Row(elem_classes="dm-prompt-row"):
        with gr.Column(scale=5, min_width=300):
            prompt = gr.Textbox(
                examples[0]["prompt"],
                label="Your message",
                placeholder="Ask for a table, a room, a flight, a film, a song, a ride …",
                lines=1,
                max_lines=4,
                max_length=LONGEST_PROMPT,
                elem_id="prompt",
            )
        with gr.Column(scale=1, min_width=220), gr.Row(elem_classes="dm-actions"):
            generate = gr.Button("Generate", variant="primary", min_width=100, elem_id="generate")
            stop = gr.Button("Stop", min_width=80, interactive=False, elem_id="stop")
    gr.Examples(
        [[example["prompt"]] for example in examples],
        prompt,
        example_labels=[example["label"] for example in examples],
        label="Try one",
        examples_per_page=len(examples),
        elem_id="examples",
        api_visibility="private",
    )
    return prompt, generate, stop


def _panes() -> tuple[gr.HTML, gr.HTML]:
    with gr.Row(equal_height=True, elem_classes="dm-panes"):
        with gr.Column(min_width=320):
            base = token_pane(
                kind="base",
                title="Base model",
                subtitle="one token per pass",
                empty="The base model's answer, one token per forward pass.",
                elem_id="pane-base",
            )
        with gr.Column(min_width=320):
            dynamo = token_pane(
                kind="dynamo",
                title="DynaMo",
                subtitle="one to three tokens per pass",
                empty="DynaMo's answer. Tokens out of one pass share a colour; click them to see why.",
                elem_id="pane-dynamo",
            )
    return base, dynamo


def _settings() -> dict[str, gr.components.Component]:
    """Controls by the name of the option that they set, three in a row."""
    default = SamplingOptions()
    controls: dict[str, gr.components.Component] = {}

    def slider(name: str, low: float, high: float, step: float, label: str, info: str) -> None:
        value = getattr(default, name, LONGEST_ANSWER)
        controls[name] = gr.Slider(
            low, high, value, step=step, label=label, info=info, min_width=260, buttons=["reset"]
        )

    with gr.Accordion("Settings", open=True, elem_id="settings"):
        with gr.Row():
            slider("threshold", 0, 1, 0.01, "Back-off threshold ε", "Higher is safer and slower")
            slider("mask_strength", 0, 2, 0.05, "Mask strength", "0 is the plain product, no mask")
            slider("temperature", 0, 2, 0.05, "Temperature", "0 takes the likeliest chunk")
        with gr.Row():
            slider("top_k", 2, 100, 1, "Candidates per head", "Top-k: how many tokens are multiplied")
            slider("repetition_penalty", 1, 2, 0.05, "Repetition penalty", "1 lets words repeat freely")
            slider(
                "max_order", 1, default.max_order, 1, "Tokens per pass, at most", "1 asks for single tokens"
            )
        with gr.Row():
            slider("max_new_tokens", 8, 256, 8, "Longest answer", "In tokens; most answers end earlier")
            controls["seed"] = gr.Number(
                0, label="Seed", info="Same seed, same text", precision=0, minimum=0, min_width=260
            )
            controls["adaptive"] = gr.Checkbox(
                default.adaptive,
                label="Adaptive threshold",
                info="Also drop what stands apart from the likely chunks",
                min_width=260,
            )
    return controls


def _validate(prompt: str, *settings: Any) -> list[dict[str, Any]]:
    """Runs before the queue: an empty prompt is marked at its box, and is no error. One answer per input."""
    empty = not (prompt and prompt.strip())
    return [gr.validate(not empty, EMPTY_PROMPT), *(gr.validate(True, "") for _ in settings)]


def _race(
    contenders: Contenders, store: RunStore, prompt: str, settings: dict[str, Any]
) -> Iterator[tuple[str, str, str, str]]:
    """Streams one race to the four outputs. What goes wrong becomes one sentence for the visitor."""
    try:
        max_new_tokens, seed = int(settings.pop("max_new_tokens")), int(settings.pop("seed") or 0)
        for whole in ("top_k", "max_order"):  # a slider sends 50 or 50.0, as it likes
            settings[whole] = int(settings[whole])
        options = SamplingOptions(**settings)
        base, dynamo = contenders.lanes(prompt.strip(), options, max_new_tokens, seed)
        contest = Race(base, dynamo, threshold=options.threshold, label=contenders.label, store=store)
        for view in contest.views():
            yield view.base, view.dynamo, view.inspector, view.status
    except ValueError as error:
        raise gr.Error(_sentence(error), print_exception=False) from error
    except Exception as error:
        log.exception("the race failed")
        message = f"The model failed ({type(error).__name__}). What was generated stays on screen; try again."
        raise gr.Error(message, print_exception=False) from error


def _sentence(error: Exception) -> str:
    # Gradio shows an error's text as HTML, and the engine's sentences may quote what the visitor sent.
    return html.escape(str(error))


def _about(description: str) -> str:
    page = (ASSETS / "about.html").read_text(encoding="utf-8")
    return page.replace("{description}", html.escape(description))


def _theme() -> gr.themes.Base:
    """System fonts, so that nothing is fetched; greys that pass contrast checks; the dark of style.css."""
    grey = "*neutral_600"
    return gr.themes.Base(
        primary_hue=gr.themes.colors.blue,
        neutral_hue=gr.themes.colors.gray,
        radius_size=gr.themes.sizes.radius_md,
        font=["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"],
    ).set(
        body_text_color_subdued=grey,
        block_info_text_color=grey,
        block_label_text_color="*neutral_700",
        block_title_text_color="*neutral_700",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        body_background_fill_dark="#0f1114",
        background_fill_primary_dark="#0f1114",
        background_fill_secondary_dark="#181b20",
        block_background_fill_dark="#181b20",
        block_border_color_dark="#343a43",
        border_color_primary_dark="#343a43",
        input_background_fill_dark="#22262d",
        button_secondary_background_fill_dark="#2c313a",
        button_secondary_background_fill_hover_dark="#383e49",
    )
