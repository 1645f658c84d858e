"""The page, put together: header, tabs, the functions for programs, and how it is served."""

from __future__ import annotations

import os
import sys
from typing import Any

import gradio as gr
from starlette.middleware import Middleware

from dynamo.common.bidi import in_html
from dynamo.spaces.limits import UNLIMITED, Limits
from dynamo.ui.api import add_api
from dynamo.ui.compare.analyses import Analyses, Offer
from dynamo.ui.compare.handlers import Handlers
from dynamo.ui.compare.pair import ModelPair
from dynamo.ui.compare.service import PageService
from dynamo.ui.compare.tab import compare_tab
from dynamo.ui.compare.votes import VoteBook
from dynamo.ui.components import ASSETS, style
from dynamo.ui.server.limits import LONGEST_FILE, RequestGuard
from dynamo.ui.theme import theme
from dynamo.ui.wiring import Wiring

TITLE = "DynaMo: several tokens per forward pass"
# That are remembered: Gradio copies all components' settings for each, some 0.3 MB, and would keep 10,000.
MOST_SESSIONS = 200

_HEADER = """
<header class="dm-header">
  <h1>DynaMo</h1>
  <p>A language model runs once for every token. DynaMo proposes the next <b>two or three tokens in one
  forward pass</b>, keeps what belongs together, and <b>backs off</b> to fewer when it is not sure.</p>
</header>
"""


def build_demo(pair: ModelPair, analyses: Analyses | None = None, offer: Offer | None = None) -> gr.Blocks:
    """The page for one loaded pair; `serve` shows it to visitors."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # or Gradio calls home when it launches
    # Or it groups its last 10,000 events with pandas after every single one.
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "1000")
    os.environ.setdefault("GRADIO_ANALYTICS_CACHE_FREQUENCY", "100")
    from dynamo.ui.explore.tab import explore_tab
    from dynamo.ui.models.manager import ModelManager, untuned
    from dynamo.ui.models.pair_parts import PairParts, notice_html
    from dynamo.ui.models.tab import MODELS, models_tab

    analyses, offer = analyses or Analyses(), offer or Offer()
    service = PageService(pair, analyses, offer.limits)
    recorded = service.load(offer.recording, status="", keep=True) if offer.recording else None
    book = VoteBook(offer.votes) if offer.votes else None
    with gr.Blocks(title=TITLE) as demo:
        gr.HTML(_HEADER)
        told = offer.notice or ("" if pair.chat else untuned(pair.name))
        notice = gr.HTML(notice_html(told), visible=bool(told))
        with gr.Tabs(selected="compare", overflow_behavior="wrap") as tabs:
            with gr.Tab("Compare", id="compare"):
                compare = compare_tab(service, offer, recorded)
            with gr.Tab("Explore", id="explore"):
                threshold = compare.settings["threshold"]
                sweep = None if analyses.sweep is None else lambda *asked: service.analyses.sweep(*asked)
                explore = explore_tab(
                    analyses.report,
                    sweep,
                    threshold,
                    tabs,
                    book,
                    lambda: service.pair.name,
                    lambda: service.pair.bits,
                )
            if offer.models is not None:
                models = gr.Tab(MODELS, id="models")
            with gr.Tab("About", id="about"):
                description = gr.HTML(_about(pair.description))
        if offer.models is not None:
            parts = PairParts(compare, explore, notice, description, _about)
            with models:
                models_tab(ModelManager(service, offer.models), parts, tabs, demo)
        Wiring(compare, Handlers(service, list(compare.settings), book, demo.upload_file_set)).connect()
        add_api(service)
    demo.pace = service.pace  # for the gate in front of the page
    # Closed: direct calls would pass by the queue, and all wait for the model in the server's threads.
    return demo.queue(max_size=offer.queue_size, api_open=False)


def launch_options(limits: Limits = UNLIMITED) -> dict[str, Any]:
    """How the page is served: its style, and nothing that leaves the machine or keeps prompts."""
    return {
        "theme": theme(),
        # Not `css=`: Gradio rewrites every selector of it, and breaks those in media queries.
        "head": f"<style>{style()}</style>",
        "footer_links": ["api"],
        "run_history": False,
        "show_error": True,
        "ssr_mode": False,
        "mcp_server": True,
        "max_file_size": limits.upload_bytes(LONGEST_FILE),
        "state_session_capacity": MOST_SESSIONS,
        "app_kwargs": {"middleware": [Middleware(RequestGuard, limits=limits)]},
        # Someone sits at this terminal; on a Space and under tests nobody does.
        "inbrowser": sys.stdout.isatty(),
    }


def serve(demo: gr.Blocks, **options: Any) -> Any:
    """`demo.launch` with `launch_options`, and with more of Gradio's, for visitors that are told apart."""
    # Or uvicorn takes what X-Forwarded-For says for the address of who connects; `limits` reads that header.
    os.environ["FORWARDED_ALLOW_IPS"] = ""
    return demo.launch(**options)


def _about(description: str) -> str:
    page = (ASSETS / "about" / "about.html").read_text(encoding="utf-8")
    return page.replace("{description}", in_html(description))
