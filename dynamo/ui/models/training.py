"""On the Models tab: training heads for a model that has none, watched while it goes on.

The training belongs to the page and not to a visitor: a timer reads its progress for everyone who looks, and
it goes on when the page is closed. Memory that is not there is refused before anything is read.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import gradio as gr

from dynamo import charts
from dynamo.common.bidi import in_html
from dynamo.common.memory import give_back
from dynamo.data.readers import FORMATS, PACKINGS
from dynamo.loading import available_memory
from dynamo.loading.sizes import gigabytes
from dynamo.model.architectures import model_shape
from dynamo.pipelines.estimates import Estimator, duration, rough_duration
from dynamo.ui.components import QUIET
from dynamo.ui.models.completion import Completion
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.models.training_job import (
    BLOCK_SIZE,
    FEW_STEPS,
    MOST_STEPS,
    OPTIONS,
    TOKENS_PER_STEP,
    Progress,
    TrainingJob,
    is_done,
)

TICK_SECONDS = 1.0
EXTRA_HEADS = 2  # as `train` adds by default

_INTRO = f"""<div class="dm-models"><h3>Train token heads on your text</h3>
<p>Two more heads learn to say what comes after the next token; the base stays as it is. A quick recipe:
{OPTIONS.batch_size} rows of {BLOCK_SIZE} tokens a step, in a process of its own beside this page, which
slows down meanwhile. Then its word pairs are counted and it races in Compare. JSON lines (conversations or
texts) or plain text.</p></div>"""
_DIALOGUES = """<div class="dm-models"><p>The dialogues are those of the Schema-Guided Dialogue corpus that
the embedded pair learnt from: <code>{path}</code> on this machine.</p></div>"""


class TrainingSection:
    """Builds the section where it is called, and connects it with the page.

    finished: changes to the folder of a model whose heads have been trained; estimate: shows
    `estimate_in_words` of `steps`.
    """

    def __init__(self, manager: ModelManager, demo: gr.Blocks):
        self._manager, self._dialogues = manager, manager.dialogues
        self._job = TrainingJob(manager.training_folder)
        gr.HTML(_INTRO)
        if self._dialogues is not None:
            gr.HTML(_DIALOGUES.format(path=in_html(str(self._dialogues))))
        self._build_inputs()
        self._build_buttons()
        self._status = gr.HTML(elem_id="training-status")
        self._plot = gr.Plot(visible=False, show_label=False, elem_id="training-losses")
        # No State: Gradio reports its changes in queued events only.
        self.finished = gr.Textbox("", visible="hidden", elem_id="training-finished")
        self._connect(demo)

    def _build_inputs(self) -> None:
        with gr.Row(elem_classes="dm-models-row"):
            self._path = gr.Textbox(
                label="Text file on this machine",
                placeholder="dialogues_train.jsonl.gz",
                info="Or choose one below",
                min_width=260,
                elem_id="training-path",
            )
            self.steps = gr.Slider(
                10, MOST_STEPS, FEW_STEPS, step=10, label="Steps", info="More steps, better heads",
                min_width=260, elem_id="training-steps",
            )  # fmt: skip
        self.estimate = gr.HTML(elem_id="training-estimate")

    def _build_buttons(self) -> None:
        with gr.Row(elem_classes="dm-models-row"):
            self._upload = gr.UploadButton(
                "Upload a text", file_types=[*FORMATS, *PACKINGS], size="lg", min_width=190,
                scale=0, elem_id="training-upload",
            )  # fmt: skip
            self._own = gr.Button(
                "Use the dialogues", min_width=240, scale=0, visible=self._dialogues is not None,
                elem_id="training-dialogues",
            )  # fmt: skip
            self._train = gr.Button(
                "Train heads", variant="primary", min_width=150, scale=0, elem_id="training-start"
            )
            self._cancel = gr.Button(
                "Stop", min_width=100, scale=0, interactive=False, elem_id="training-stop"
            )

    def _connect(self, demo: gr.Blocks) -> None:
        drawn = gr.State((-1, ""))
        timer = gr.Timer(TICK_SECONDS, active=False)
        shown = [self._status, self._plot, drawn, self._train, self._cancel, timer, self.finished]
        self.steps.change(
            self.estimate_in_words, self.steps, self.estimate, trigger_mode="always_last", **QUIET
        )
        self._own.click(lambda: str(self._dialogues), None, self._path, **QUIET)
        self._upload.upload(lambda file: file, self._upload, self._path, **QUIET)
        self._train.click(self.start, [self._path, self.steps], shown, **QUIET)
        timer.tick(self.look, drawn, shown, **QUIET)
        self._cancel.click(self.stop, None, [self._cancel, self._status], **QUIET)
        demo.load(self.come_back, None, shown, **QUIET)

    def estimate_in_words(self, steps: int) -> str:
        """Of so many steps for the model that is loaded now, "" without one."""
        completion = self._manager.completion
        if completion is None:
            return ""
        cost = self._estimator(completion).estimate(OPTIONS, BLOCK_SIZE, int(steps) * TOKENS_PER_STEP)
        words = f"{rough_duration(cost.seconds)} of training, and {cost.memory()}"
        return _html(f"An estimate, from a short trial of this machine: {words}.")

    def start(self, data: str, steps: int) -> tuple[Any, ...]:
        completion = self._manager.completion
        try:
            if completion is None:
                raise ValueError("model: load one without heads first")
            if not (data or "").strip():
                raise ValueError("data: name a text file, or upload one")
            task = (completion.name, data.strip(), int(steps))
            folder = self._job.folder_of(*task)
            if not is_done(folder):
                self._check_memory(completion)
            self._job.start(*task, completion.chat, folder)
        except (ValueError, OSError) as error:
            return _html(str(error), bad=True), *(gr.skip() for _ in range(6))
        return self.look((-1, ""))

    def look(self, before: tuple[int, str]) -> tuple[Any, ...]:
        """The chart is drawn again only if it has changed, as that is what costs."""
        progress = self._job.progress()
        now = (progress.step, progress.phase)
        chart = gr.skip()
        if progress.rows and now != tuple(before):
            chart = gr.update(value=charts.training_losses(progress.rows, progress.steps), visible=True)
        label = "Go on" if progress.phase == "stopped" else "Train heads"
        return (
            _in_words(progress),
            chart,
            now,
            gr.update(interactive=not progress.running, value=label),
            gr.update(interactive=progress.running),
            gr.Timer(active=progress.running),
            progress.result if progress.phase == "done" else gr.skip(),
        )

    def come_back(self) -> tuple[Any, ...]:
        """A page that is opened while heads are trained; what was trained by then is in the list above."""
        return (*self.look((-1, ""))[:-1], gr.skip())

    def stop(self) -> tuple[Any, Any]:
        self._job.stop()
        return gr.update(interactive=False), _html("Stopping: a checkpoint is written …")

    def _estimator(self, completion: Completion) -> Estimator:
        shape = replace(model_shape(completion.model), extra_heads=EXTRA_HEADS)
        return Estimator(shape, available_memory(self._manager.device))

    def _check_memory(self, completion: Completion) -> None:
        """Raises ValueError where the training needs more memory than there is."""
        give_back()  # the training is another process
        estimator = self._estimator(completion)
        needed, free = estimator.bytes(OPTIONS, BLOCK_SIZE), estimator.free
        if free is not None and needed > free:
            raise ValueError(
                f"training: heads for {completion.name} need about {gigabytes(needed)} of memory, and "
                f"{gigabytes(free)} are free; load a smaller model without heads"
            )


def _in_words(progress: Progress) -> str:
    if progress.phase == "idle":
        return ""
    if progress.phase == "training" and not progress.rows:
        return _html(f"Starting: {progress.model} and the text are being read …")
    losses = ""
    if progress.rows:
        each = [f"{loss:.2f}" for loss in progress.rows[-1]["losses"]]
        losses = f" Nats per token, head by head: {', '.join(each)}."
    done = f"step {progress.step} of {progress.steps}"
    words = {
        "training": f"{done.capitalize()}{_left(progress)}.{losses}",
        "counting": f"{progress.steps} steps are done; counting which tokens follow each other …",
        "done": f"The heads of {progress.model} are trained.{losses}",
        "stopped": f"Stopped after {done}.{losses} “Go on” goes on from there.",
        "failed": f"The training failed: {progress.message}",
    }
    not_learnt = [f" Of the text, {sentence}." for sentence in progress.left_out]
    return _html("".join((words[progress.phase], *not_learnt)), bad=progress.phase == "failed")


def _left(progress: Progress) -> str:
    """By the pace of the last steps, which is measured."""
    pace = progress.rows[-1].get("tokens_per_second") if progress.rows else None
    tokens = (progress.steps - progress.step) * TOKENS_PER_STEP
    return f", about {duration(tokens / pace)} left" if pace and tokens else ""


def _html(text: str, bad: bool = False) -> str:
    kind = ' class="dm-failed" role="alert"' if bad else ' role="status"'
    return f'<div class="dm-models"><p{kind}>{in_html(text)}</p></div>'
