"""The race as a picture: what is saved, and how texts of any script and length are laid out in it."""

from __future__ import annotations

from fakes import HOSTILE, scripted_pair
from pages import generate, served
from PIL import Image

PICTURE = ("race/clocks.js", "race/fork.js", "race/picture.js")
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
