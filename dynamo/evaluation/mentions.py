"""Does a reply make things up? Its numbers and names, and which of them the context has.

A number is a run of digits with what joins them (7:30, 1,200, 4.5); a name is a run of capitalised words that
does not begin a sentence. Both are counted once for each time they are mentioned. An answer may well name
what nobody named before, so a share is worth something beside that of another text on the same contexts.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_WORD = re.compile(r"[^\W\d_]+(?:['’.&-][^\W\d_]+)*")
_BEGINNING = re.compile(r"(?:^|[.!?:;\n])[\s\"'“”(*-]*$")
_NEVER_NAMES = {"I", "OK"}


class Mentions(NamedTuple):
    """How many numbers and names a reply mentions, and how many of each the context has."""

    numbers_found: int
    numbers: int
    names_found: int
    names: int


def mentions(reply: str, context: str) -> Mentions:
    said, known = _NUMBER.findall(reply), set(_NUMBER.findall(context))
    named, words = names(reply), " " + " ".join(_words(context)) + " "
    return Mentions(
        numbers_found=sum(number in known for number in said),
        numbers=len(said),
        names_found=sum(f" {' '.join(_words(name))} " in words for name in named),
        names=len(named),
    )


def names(text: str) -> list[str]:
    """Runs of capitalised words, apart from one that begins a sentence: its capital says nothing."""
    runs: list[list[str]] = []
    end = -1
    for match in _WORD.finditer(text):
        word = match.group()
        if not word[0].isupper() or re.split(r"['’]", word)[0] in _NEVER_NAMES:
            continue
        if _BEGINNING.search(text[: match.start()]):
            continue
        if runs and text[end : match.start()] == " ":
            runs[-1].append(word)
        else:
            runs.append([word])
        end = match.end()
    return [" ".join(run) for run in runs]


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]
