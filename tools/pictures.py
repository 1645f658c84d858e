"""The page's pictures in README.md and of its links: `make pictures`.

The app is started as `make demo` starts it, once with each shipped pair, and a Chromium shows its recordings;
nothing is decoded. The race is animated at the pace that the page chooses for it: the browser's clock is
stopped and set forward from picture to picture, so it does not matter how fast this machine is.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "helpers")]

from browser.conftest import CHROMIUM, PATIENCE, QUIET

from app import build
from dynamo.ui.layout import PREVIEW
from dynamo.ui.server.preview import SIZE

IMAGES = ROOT / "docs" / "images"
RACES = {"light": "race.webp", "dark": "race-dark.webp"}
STAGE = {"width": 1440, "height": 900}
RACE = {"width": 1366, "height": 768}
PHONE = {"width": 375, "height": 812}
RACE_WIDTH = 1000  # pixels of the animated picture
FRAME = 150  # milliseconds
LONGEST_RACE = 16_000
HELD = 4000  # milliseconds that the finished race stays
LARGEST_RACE = 3_000_000  # bytes


@contextmanager
def served(model: str) -> Iterator[str]:
    demo, options = build({"DYNAMO_MODEL": model})
    quiet = {"server_name": "127.0.0.1", "prevent_thread_lock": True, "quiet": True, "inbrowser": False}
    _, url, _ = demo.launch(**(options | quiet))
    try:
        yield url
    finally:
        demo.close()


def opened(browser: Browser, url: str, theme: str, viewport: dict[str, int]) -> Page:
    """The page with its recording, which does not play by itself."""
    page = browser.new_page(viewport=viewport, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    page.clock.install()
    page.goto(f"{url}?__theme={theme}")
    page.wait_for_selector("#pane-dynamo .dm-pane[data-state=done]")
    page.wait_for_selector(".dm-inspector[data-state=joint]")
    page.evaluate("document.fonts.ready")
    page.wait_for_timeout(500)
    return page


def picture_of(page: Page) -> Image.Image:
    return Image.open(BytesIO(page.screenshot())).convert("RGB")


def frames(page: Page) -> Iterator[Image.Image]:
    """The race at the pace that the page chooses, from its first token until both lanes are done."""
    page.clock.pause_at(page.evaluate("Date.now() + 1000"))
    page.click(".dm-toggle")
    for _ in range(0, LONGEST_RACE, FRAME):
        page.clock.run_for(FRAME)
        yield picture_of(page)
        if page.get_attribute(".dm-race", "data-phase") == "settled":
            return


def animate(pictures: list[Image.Image], path: Path, width: int = RACE_WIDTH) -> None:
    """Raises ValueError where the file would be larger than README.md should load."""
    size = (width, round(pictures[0].height * width / pictures[0].width))
    first, *others = (picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures)
    shown = [FRAME] * len(others) + [HELD]
    first.save(path, save_all=True, append_images=others, duration=shown, loop=0, quality=60, method=4)
    if path.stat().st_size > LARGEST_RACE:
        raise ValueError(f"{path.name}: {path.stat().st_size:,} bytes, at most {LARGEST_RACE:,}")
    print(f"{path.name}: {len(pictures)} pictures, {path.stat().st_size:,} bytes")


def preview(page: Page, path: Path) -> None:
    width, height = SIZE
    page.set_viewport_size({"width": STAGE["width"], "height": round(STAGE["width"] * height / width)})
    page.wait_for_timeout(500)
    Image.open(BytesIO(page.screenshot())).convert("RGB").resize(SIZE, Image.Resampling.LANCZOS).save(
        path, optimize=True
    )


def main() -> None:
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        with served("smollm2") as url:
            for theme, name in RACES.items():
                animate(list(frames(opened(browser, url, theme, RACE))), IMAGES / name)
        with served("embedded") as url:
            page = opened(browser, url, "light", STAGE)
            page.locator("#look").screenshot(path=IMAGES / "inspector.png")
            preview(page, PREVIEW)
            page = opened(browser, url, "dark", PHONE)
            page.screenshot(path=IMAGES / "phone.png")
        browser.close()


if __name__ == "__main__":
    main()
