"""The pieces of `make pictures`, and what it left in README.md."""

from __future__ import annotations

import pytest

pytest.importorskip("playwright.sync_api", reason="the pictures are taken in a browser")

import pictures
from PIL import Image


def seconds_of(picture: Image.Image) -> list[int]:
    durations = []
    for frame in range(picture.n_frames):
        picture.seek(frame)
        picture.load()
        durations.append(picture.info["duration"])
    return durations


def test_a_race_is_animated_and_its_end_is_held(tmp_path):
    drawn = [Image.new("RGB", (40, 30), (60 * number, 0, 0)) for number in range(4)]
    pictures.animate(drawn, tmp_path / "race.webp", width=20)
    with Image.open(tmp_path / "race.webp") as made:
        assert made.size == (20, 15)
        assert seconds_of(made) == [pictures.FRAME] * 3 + [pictures.HELD]


def test_a_picture_too_large_for_a_readme_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "LARGEST_RACE", 10)
    with pytest.raises(ValueError, match=r"race\.webp: .* bytes, at most 10"):
        pictures.animate([Image.new("RGB", (40, 30))] * 2, tmp_path / "race.webp", width=20)


def test_the_readme_shows_the_race_in_both_themes():
    readme = (pictures.ROOT / "README.md").read_text(encoding="utf-8")
    for name in pictures.RACES.values():
        path = pictures.IMAGES / name
        assert f"docs/images/{name}" in readme
        assert path.stat().st_size <= pictures.LARGEST_RACE
        with Image.open(path) as picture:
            assert picture.is_animated
