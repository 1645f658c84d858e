"""On the Models tab: training heads for a model that has none, watched while it goes on.

The training is the host's and not a visitor's: a timer asks how far it is, for whoever looks, and it goes on
when the page is closed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from dynamo import charts
from dynamo.common.bidi import in_html
from dynamo.common.memory import give_back
from dynamo.loading import available_memory
from dynamo.pipelines.estimates import duration
from dynamo.ui.compare.completion import Completion
from dynamo.ui.models.forecast import Forecast, forecast, machine_pace
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.models.training_job import (
    BATCH_SIZE,
    BLOCK_SIZE,
    FEW_STEPS,
    MOST_STEPS,
    Progress,
    TrainingJob,
    is_done,
)
from dynamo.ui.wiring import QUIET

TICK_SECONDS = 1.0

_INTRO = f"""<div class="dm-models"><h3>Train token heads on your text</h3>
<p>Two more heads learn to say what comes after the next token; the base stays as it is. A quick recipe:
{BATCH_SIZE} rows of {BLOCK_SIZE} tokens a step, in a process of its own beside this page, which slows down
meanwhile. Then its word pairs are counted and it races in Compare. JSON lines (conversations or texts) or
plain text.</p></div>"""


_DIALOGUES = """<div class="dm-models"><p>The dialogues are those of the Schema-Guided Dialogue corpus that
the embedded pair learnt from: <code>{path}</code> on this machine.</p></div>"""


@dataclass(frozen=True)
class TrainingSection:
    """finished: changes to the folder of a model whose heads have been trained; foretell: steps to what shows
    in `estimate`, of the model that is loaded now.
    """

    finished: gr.Textbox
    steps: gr.Slider
    estimate: gr.HTML
    foretell: Callable[[int], str]


def training_section(manager: ModelManager, demo: gr.Blocks) -> TrainingSection:
    """Builds the section where it is called, and connects it with the page."""
    workshop, dialogues = TrainingJob(manager.offer.workshop), manager.offer.dialogues
    gr.HTML(_INTRO)
    if dialogues is not None:
        gr.HTML(_DIALOGUES.format(path=in_html(str(dialogues))))
    with gr.Row(elem_classes="dm-models-row"):
        path = gr.Textbox(
            label="Text file on this machine",
            placeholder="dialogues_train.jsonl.gz",
            info="Or choose one below",
            min_width=260,
            elem_id="training-path",
        )
        steps = gr.Slider(
            10, MOST_STEPS, FEW_STEPS, step=10, label="Steps", info="More steps, better heads",
            min_width=260, elem_id="training-steps",
        )  # fmt: skip
    estimate = gr.HTML(elem_id="training-estimate")
    with gr.Row(elem_classes="dm-models-row"):
        upload = gr.UploadButton(
            "Upload a text", file_types=[".jsonl", ".txt", ".md", ".gz"], size="lg", min_width=190, scale=0,
            elem_id="training-upload",
        )  # fmt: skip
        own = gr.Button(
            "Use the dialogues", min_width=240, scale=0, visible=dialogues is not None,
            elem_id="training-dialogues",
        )  # fmt: skip
        train = gr.Button("Train heads", variant="primary", min_width=150, scale=0, elem_id="training-start")
        cancel = gr.Button("Stop", min_width=100, scale=0, interactive=False, elem_id="training-stop")
    status = gr.HTML(elem_id="training-status")
    plot = gr.Plot(visible=False, show_label=False, elem_id="training-losses")
    # No State: Gradio tells of its changes in queued events only.
    finished = gr.Textbox("", visible="hidden", elem_id="training-finished")
    drawn = gr.State((-1, ""))
    timer = gr.Timer(TICK_SECONDS, active=False)
    shown = [status, plot, drawn, train, cancel, timer, finished]

    def expected(completion: Completion, count: int, pace: float | None = None) -> Forecast:
        return forecast(completion.name, completion.model, count, available_memory(manager.device), pace)

    def foretell(count: int) -> str:
        completion = manager.completion
        if completion is None:
            return ""
        return _html(expected(completion, int(count), machine_pace(manager.service)).in_words())

    def start(data: str, count: int) -> tuple[Any, ...]:
        completion = manager.completion
        try:
            if completion is None:
                raise ValueError("model: load one without heads first")
            if not (data or "").strip():
                raise ValueError("data: name a text file, or upload one")
            task = (completion.name, data.strip(), int(count))
            folder = workshop.folder_of(*task)
            if not is_done(folder):
                give_back()  # the training is another process
                expected(completion, int(count)).check()
            workshop.start(*task, completion.chat, folder)
        except (ValueError, OSError) as error:
            reason = in_html(str(error))
            told = f'<div class="dm-models"><p class="dm-failed" role="alert">{reason}</p></div>'
            return told, *(gr.skip() for _ in shown[1:])
        return look((-1, ""))

    def look(before: tuple[int, str]) -> tuple[Any, ...]:
        """The chart is drawn again only where it has changed: that is what costs."""
        told = workshop.progress()
        now = (told.step, told.phase)
        chart = gr.skip()
        if told.rows and now != tuple(before):
            chart = gr.update(value=charts.training_losses(told.rows, told.steps), visible=True)
        button = gr.update(interactive=not told.running, value=_start_label(told))
        ended = told.result if told.phase == "done" else gr.skip()
        return (
            _in_words(told), chart, now, button, gr.update(interactive=told.running),
            gr.Timer(active=told.running), ended,
        )  # fmt: skip

    def come_back() -> tuple[Any, ...]:
        """A page that is opened while heads are trained; what was trained by then is in the list above."""
        return (*look((-1, ""))[:-1], gr.skip())

    def stop() -> tuple[Any, Any]:
        workshop.stop()
        return gr.update(interactive=False), _html("Stopping: a checkpoint is written …")

    steps.change(foretell, steps, estimate, trigger_mode="always_last", **QUIET)
    own.click(lambda: str(dialogues), None, path, **QUIET)
    upload.upload(lambda file: file, upload, path, **QUIET)
    train.click(start, [path, steps], shown, **QUIET)
    timer.tick(look, drawn, shown, **QUIET)
    cancel.click(stop, None, [cancel, status], **QUIET)
    demo.load(come_back, None, shown, **QUIET)
    return TrainingSection(finished, steps, estimate, foretell)


def _start_label(told: Progress) -> str:
    return "Go on" if told.phase == "stopped" else "Train heads"


def _in_words(told: Progress) -> str:
    if told.phase == "idle":
        return ""
    if told.phase == "training" and not told.rows:
        return _html(f"Starting: {told.model} and the text are being read …")
    losses = ""
    if told.rows:
        each = [f"{loss:.2f}" for loss in told.rows[-1]["losses"]]
        losses = f" Nats per token, head by head: {', '.join(each)}."
    words = {
        "training": f"Step {told.step} of {told.steps}{_left(told)}.{losses}",
        "counting": f"{told.steps} steps are done; counting which tokens follow each other …",
        "done": f"The heads of {told.model} are trained.{losses}",
        "stopped": f"Stopped after step {told.step} of {told.steps}.{losses} “Go on” goes on from there.",
        "failed": f"The training failed: {told.message}",
    }
    return _html(words[told.phase], bad=told.phase == "failed")


def _left(told: Progress) -> str:
    """By the pace of the last steps, which is measured."""
    pace = told.rows[-1].get("tokens_per_second") if told.rows else None
    tokens = (told.steps - told.step) * BATCH_SIZE * BLOCK_SIZE
    return f", about {duration(tokens / pace)} left" if pace and tokens else ""


def _html(told: str, bad: bool = False) -> str:
    kind = ' class="dm-failed" role="alert"' if bad else ' role="status"'
    return f'<div class="dm-models"><p{kind}>{in_html(told)}</p></div>'
