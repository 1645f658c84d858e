"""Figures as files: pictures where something here can draw them, else pages.

A picture is what a reader of a report sees without opening anything. kaleido draws PNG; without it the
Chromium that the browser tests bring draws SVG; without both a figure is a small HTML page, which fetches
plotly.js when it is opened.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from urllib.parse import unquote

import plotly.graph_objects as go

WIDTH = 820
BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")  # the first on the path draws
_PAPER = "#ffffff"  # a file is seen on any background, the page's figures are transparent


def write_figures(figures: Mapping[str, go.Figure], folder: Path) -> dict[str, Path]:
    """Write each named figure into the folder, dropping its older file of another kind: name -> file."""
    if not figures:
        return {}
    ready = {name: _on_paper(figure) for name, figure in figures.items()}
    drawn = _drawn(ready)
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, (content, suffix) in drawn.items():
        files[name] = folder / f"{name}{suffix}"
        files[name].write_bytes(content)
        for other in {".png", ".svg", ".html"} - {suffix}:
            (folder / f"{name}{other}").unlink(missing_ok=True)
    return files


def _drawn(figures: Mapping[str, go.Figure]) -> dict[str, tuple[bytes, str]]:
    for draw, suffix in ((_by_kaleido, ".png"), (_by_chromium, ".svg")):
        found = draw(figures)
        if found is not None:
            return {name: (content, suffix) for name, content in found.items()}
    pages = {name: figure.to_html(include_plotlyjs="cdn") for name, figure in figures.items()}
    return {name: (page.encode(), ".html") for name, page in pages.items()}


def _on_paper(figure: go.Figure) -> go.Figure:
    copy = go.Figure(figure)
    return copy.update_layout(paper_bgcolor=_PAPER, plot_bgcolor=_PAPER, width=WIDTH, autosize=False)


def _by_kaleido(figures: Mapping[str, go.Figure]) -> dict[str, bytes] | None:
    if find_spec("kaleido") is None:
        return None
    try:
        return {name: figure.to_image(format="png", scale=2) for name, figure in figures.items()}
    except (RuntimeError, ValueError, OSError):  # it is there and its browser is not
        return None


def _by_chromium(figures: Mapping[str, go.Figure]) -> dict[str, bytes] | None:
    program = os.environ.get("DYNAMO_CHROMIUM") or next(filter(None, map(which, BROWSERS)), None)
    if find_spec("playwright") is None or program is None:
        return None
    from playwright.sync_api import Error, sync_playwright
    from plotly.offline import get_plotlyjs

    with sync_playwright() as playwright:
        try:
            browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        except Error:
            return None
        try:
            page = browser.new_page()
            page.add_script_tag(content=get_plotlyjs())
            return {name: _svg(page, figure) for name, figure in figures.items()}
        finally:
            browser.close()


def _svg(page, figure: go.Figure) -> bytes:
    options = {"format": "svg", "width": WIDTH, "height": figure.layout.height or 380}
    call = "([figure, options]) => Plotly.toImage(JSON.parse(figure), options)"
    url = page.evaluate(call, [figure.to_json(), options])
    head, _, body = url.partition(",")
    return base64.b64decode(body) if head.endswith(";base64") else unquote(body).encode()
