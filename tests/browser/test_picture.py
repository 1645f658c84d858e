"""The race as a picture: what is saved, and how texts of any script and length are laid out in it."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import HOSTILE, scripted_pair
from pages import generate, served
from PIL import Image, ImageSequence

PICTURE = ("race/clocks.js", "race/fork.js", "race/picture.js")
GIF = ("race/gif.js",)
TINT = {"light": (214, 234, 248), "dark": (18, 59, 87)}  # of a chunk of two tokens
CARD = {"light": (255, 255, 255), "dark": (24, 27, 32)}


def test_one_click_saves_the_race_in_the_colours_of_the_page(page_at, tmp_path):
    with served(
        scripted_pair(f"{HOSTILE} \u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd {HOSTILE}")
    ) as url:
        page = page_at(f"{url}?__theme=light")
        assert page.locator(".dm-picture").is_disabled()
        generate(page, HOSTILE)
        for theme in ("light", "dark"):
            page.evaluate("(dark) => document.body.classList.toggle('dark', dark)", theme == "dark")
            with page.expect_download() as download:
                page.get_by_role("button", name="Save picture").click()
            page.get_by_text("Picture saved.").wait_for()
            assert download.value.suggested_filename == "dynamo-race.png"
            path = tmp_path / f"{theme}.png"
            download.value.save_as(path)
            with Image.open(path) as picture:
                assert picture.format == "PNG" and picture.width == 2400 and 700 < picture.height < 2400
                pixels = picture.convert("RGB")
            colours = dict(map(reversed, pixels.getcolors(2**20)))
            assert pixels.getpixel((0, 0)) == CARD[theme] and colours[TINT[theme]] > 1000
            assert len(colours) > 100, "letters have soft edges"
            assert page.evaluate("window.pwned") is None
        page.click("#new-chat")
        page.wait_for_selector(".dm-picture[disabled]")


def test_the_race_is_saved_as_an_animation_that_ends_as_the_picture_does(page_at, page_url, tmp_path):
    page = page_at(f"{page_url}?__theme=light")
    generate(page)
    downloads = []
    page.on("download", lambda each: downloads.append(each))
    with page.expect_download() as download:
        page.get_by_role("button", name="GIF").dblclick()
    page.get_by_text("Animation saved.").wait_for()
    page.wait_for_timeout(500)
    assert len(downloads) == 1, "a click while it is drawn draws no second one"
    path = tmp_path / download.value.suggested_filename
    assert path.name == "dynamo-race.gif"
    download.value.save_as(path)
    took = float(page.inner_text(".dm-lap-base span:last-child").split()[-2])
    with Image.open(path) as animation:
        assert animation.size[0] == 960 and animation.info["loop"] == 0
        tints, milliseconds = [], []
        for frame in ImageSequence.Iterator(animation):
            milliseconds.append(frame.info["duration"])
            pixels = frame.convert("RGB")
            colours = dict(map(reversed, pixels.getcolors(2**20)))
            tints.append(colours.get(TINT["light"], 0))
            assert pixels.getpixel((0, 0)) == CARD["light"]
    assert tints[0] == 0 and tints == sorted(tints) and tints[-1] > 1000, "chunks come one after the other"
    slowdown = 100 / (1000 * took / 45)  # a pass of the base takes a tenth of a second
    assert sum(milliseconds[1:-1]) == pytest.approx(1000 * took * slowdown, rel=0.3)
    assert milliseconds[-1] >= 5000


@pytest.mark.parametrize(("colours", "pixels"), [(2, 60_000), (255, 60_000), (5, 1)])
def test_the_file_holds_the_pixels_that_it_was_given(arithmetic, tmp_path, colours, pixels):
    """Many codes, which are begun anew, few, and one: as another program reads them."""
    width = min(pixels, 300)
    numbers = np.random.default_rng(0).integers(0, colours, (2, pixels // width, width))
    numbers[1, :, : width // 2] = numbers[0, :, : width // 2]  # of the second only a part has changed
    palette = [0xFF000000 | 7 * i << 8 | i for i in range(colours)]
    script = """(() => { const file = gifFile(args[1], args[2], args[0]);
      for (const frame of args[3]) file.add(Uint32Array.from(frame, (i) => args[0][i]), 10);
      return file.done().flatMap((piece) => [...piece]); })()"""
    frames = [each.ravel().tolist() for each in numbers]
    path = tmp_path / "some.gif"
    path.write_bytes(bytes(arithmetic(script, palette, width, pixels // width, frames, files=GIF)))
    with Image.open(path) as animation:
        for number, frame in enumerate(ImageSequence.Iterator(animation)):
            assert (np.asarray(frame.convert("RGB"))[..., 0] == numbers[number]).all()
    assert number == 1


def test_a_text_is_laid_out_in_its_direction_and_what_is_beyond_the_last_line_is_counted(arithmetic):
    def laid_out(parts, most=24):
        script = (
            "layOut(document.body, '400 17px sans-serif', 300, args[0].map((text) => ({ text })), args[1])"
        )
        return arithmetic(script, parts, most, files=PICTURE)

    words = [f" word{i}" for i in range(40)]
    whole, cut = laid_out(words), laid_out(words, 3)
    assert " ".join(line["text"].strip() for line in whole["lines"]).split() == "".join(words).split()
    assert whole["left"] == 0 and len(cut["lines"]) == 3
    assert cut["left"] == 40 - len("".join(line["text"] for line in cut["lines"]).split())
    hebrew = laid_out(["\u05e9\u05dc\u05d5\u05dd", " \u05e2\u05d5\u05dc\u05dd"])
    first, second = hebrew["boxes"]
    assert hebrew["direction"] == "rtl" and second["right"] <= first["left"] + 1
    assert laid_out(["a\n\nb"])["height"] == 3 * 29 and laid_out([])["lines"] == []


def test_tokens_without_ink_are_marked_and_commands_of_direction_spelled(arithmetic):
    passes = [{"ids": [1, 2], "text": [" Yes", "\n"]}, {"ids": [3], "text": [""]}]
    parts = arithmetic("partsOf(args[0]).map(({ text }) => text)", passes, files=PICTURE)
    assert parts == ["Yes", "⏎\n", "◦"]
    line = arithmetic(
        "layOut(document.body, '17px serif', 300, [{ text: args[0] }]).lines[0].text",
        "a\u202eb",
        files=PICTURE,
    )
    assert line == "a⟨U+202E⟩b"
