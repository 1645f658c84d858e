"""The page, put together: header, tabs, the functions for programs, and how it is served."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware

from dynamo.common.bidi import in_html
from dynamo.spaces.limits import UNLIMITED, Limits
from dynamo.ui.api import add_api
from dynamo.ui.compare.handlers import Handlers
from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.tab import CompareTab
from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.compare.wiring import Wiring
from dynamo.ui.components import ASSETS, IN_BROWSER, style
from dynamo.ui.explore.tab import ExploreTab
from dynamo.ui.models.manager import ModelManager
from dynamo.ui.models.switch import ModelSwitch, model_line
from dynamo.ui.models.tab import MODELS, NOTE_NAMING, ModelsTab
from dynamo.ui.server.limits import LONGEST_FILE, RequestGuard
from dynamo.ui.server.preview import LinkPreview
from dynamo.ui.theme import theme

TITLE = "DynaMo: several tokens per forward pass"
DESCRIPTION = (
    "See a chat model write two or three tokens per forward pass, side by side with its base model: every "
    "chunk, the probabilities behind it, and when and why it backs off."
)
PREVIEW = ASSETS / "preview" / "preview.png"
# That are remembered: Gradio copies all components' settings for each, some 0.3 MB, and would keep 10,000.
MOST_SESSIONS = 200

# For scripts that wait for it, or that begin later.
_OPENED = """() => {
  const bus = (window.dynamoBus ??= new EventTarget());
  bus.opened = true;
  bus.dispatchEvent(new Event("opened"));
}"""

_HEADER = """
<header class="dm-header">
  <h1>DynaMo</h1>
  <p><span>A language model normally runs once per token.</span> DynaMo proposes <b>two or three tokens in
  one forward pass</b><span class="dm-if-lossy"><span>, keeps what belongs together,</span> and <b>backs
  off</b> when unsure.</span><span class="dm-if-exact">; in exact mode the next pass <b>verifies</b>
  them.</span></p>
</header>
"""


def build_demo(
    pair: ModelPair,
    *,
    notice: str = "",
    recording: Path | None = None,
    votes: Path | None = None,
    strip: bool = True,
    queue_size: int = 20,
    limits: Limits = UNLIMITED,
    models: Callable[[PageService], ModelManager] | None = None,
) -> gr.Blocks:
    """The page for one loaded pair; `serve` shows it to visitors.

    notice: a sentence on top of the page; recording: a trace that plays on a first visit; votes: folder of
    the blind votes, None for no voting; strip: whether one click may decode a prompt seven times; queue_size:
    visitors that may wait; limits: of one visitor; models: makes the manager of the models that may be
    loaded instead, None for no choice.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # or Gradio calls home when it launches
    # Or it groups its last 10,000 events with pandas after every single one.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "100")
    service = PageService(pair, limits)
    recorded = service.load(recording, status="", keep=True) if recording else None
    book = VoteBook(votes) if votes else None
    manager = models(service) if models else None
    with gr.Blocks(title=TITLE) as demo:
        notice_bar = gr.HTML(notice_html(notice or pair.notice), visible=bool(notice or pair.notice))
        loading = gr.HTML(elem_id="switch-status")
        gr.HTML(_HEADER)
        with gr.Row(elem_classes="dm-model-row"):
            switch = ModelSwitch(manager, loading) if manager is not None else None
            model = gr.HTML(model_line(pair, named=switch is None), elem_id="model", min_width=0)
        with gr.Tabs(selected="compare", overflow_behavior="wrap") as tabs:
            with gr.Tab("Compare", id="compare"):
                compare = CompareTab(service, recorded, voting=book is not None, strip=strip)
            with gr.Tab("Explore", id="explore"):
                explore = ExploreTab(
                    pair.report,
                    # The loaded pair's own, and nothing that would keep the first one in memory.
                    (lambda *asked: service.pair.sweep(*asked)) if pair.sweep else None,
                    compare.settings["threshold"],
                    tabs,
                    (lambda: book.summary(service.pair.name, service.pair.bits)) if book else None,
                )
            if manager is not None:
                models_tab = gr.Tab(MODELS, id="models")
            with gr.Tab("About", id="about"):
                description = gr.HTML(_about(pair.description))
        opened = demo.load
        if manager is not None:
            around = (model, notice_bar, description)
            with models_tab:
                opened = _models_tab(manager, switch, compare, explore, around, tabs, demo)
        Wiring(compare, Handlers(service, list(compare.settings), book, demo.upload_file_set)).connect()
        opened(None, js=_OPENED, **IN_BROWSER)
        add_api(service)
    demo.pace = service.pace  # for the request guard in front of the page
    # Closed: direct calls would pass by the queue, and all wait for the model in the server's threads.
    return demo.queue(max_size=queue_size, api_open=False)


def _models_tab(
    manager: ModelManager,
    switch: ModelSwitch,
    compare: CompareTab,
    explore: ExploreTab,
    around: tuple[gr.HTML, gr.HTML, gr.HTML],
    tabs: gr.Tabs,
    demo: gr.Blocks,
) -> Callable[..., Any]:
    """Builds the tab. Returns what adds a listener to a page's learning which pair is loaded."""
    model, notice, description = around

    def show_pair(opening: bool) -> dict[Any, Any]:
        pair = manager.service.pair
        return {
            **compare.pair_updates(pair, opening),
            **explore.show(pair.report),
            model: model_line(pair, named=False),
            notice: gr.update(value=notice_html(manager.notice), visible=bool(manager.notice)),
            description: _about(pair.description),
        }

    about_pair = [*compare.pair_updates(manager.service.pair), *explore.outputs, *around]
    return ModelsTab(manager, switch, compare, about_pair, show_pair, tabs, demo).opened.then


def launch_options(limits: Limits = UNLIMITED) -> dict[str, Any]:
    """How the page is served: its style, and nothing that leaves the machine or keeps prompts."""
    return {
        "theme": theme(),
        # Not `css=`: Gradio rewrites every selector of it, and breaks those in media queries.
        "head": f"<style>{style()}</style><script>{NOTE_NAMING}</script>",
        "footer_links": ["api"],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
        "mcp_server": True,
        "max_file_size": limits.upload_bytes(LONGEST_FILE),
        "state_session_capacity": MOST_SESSIONS,
        # Gradio compresses its scripts, but not the page that names all components: 600 kB, or 125.
        "app_kwargs": {
            "middleware": [
                Middleware(RequestGuard, limits=limits),
                Middleware(GZipMiddleware),
                Middleware(LinkPreview, title=TITLE, description=DESCRIPTION, picture=PREVIEW),
            ]
        },
        # Someone sits at this terminal; on a Space and under tests nobody does.
        "inbrowser": sys.stdout.isatty(),
    }


def serve(demo: gr.Blocks, **options: Any) -> Any:
    """`demo.launch` with `launch_options`; a visitor is identified by the address that connects."""
    # Or uvicorn would replace that address by what X-Forwarded-For says; `limits` reads the header itself.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    return demo.launch(**options)


def _about(description: str) -> str:
    page = (ASSETS / "about" / "about.html").read_text(encoding="utf-8")
    return page.replace("{description}", in_html(description))


def notice_html(notice: str) -> str:
    return f'<p class="dm-notice" role="status">{in_html(notice)}</p>' if notice else ""
