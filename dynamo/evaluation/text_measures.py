"""Measures of texts that need no model: overlap with a true text, made-up mentions, repetition, diversity.

All are counts, which are pooled over many texts by adding up, before anything is divided.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


def ngrams(tokens: Sequence, n: int) -> list[tuple]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repeated(tokens: Sequence[int]) -> tuple[int, int]:
    """Of a text's 4-grams how many occurred in it before, and how many there are: seq-rep-4 as a fraction.

    seq-rep-n is 1 - distinct / all (Welleck et al., Neural text generation with unlikelihood training, 2020).
    """
    grams = ngrams(tokens, 4)
    return len(grams) - len(set(grams)), len(grams)


def distinct(texts: Sequence[Sequence[int]]) -> tuple[int, int]:
    """How many different bigrams several texts have together, and how many in all: distinct-2 as a fraction.

    (Li et al., A diversity-promoting objective function, 2016.) It falls with the amount of text, so compare
    equally many texts of about the same length.
    """
    grams = [gram for tokens in texts for gram in ngrams(tokens, 2)]
    return len(set(grams)), len(grams)


# chrF, overlap in character n-grams (Popović, chrF: character n-gram F-score for automatic MT evaluation,
# 2015): (1 + β²) P R / (β² P + R) with β = 2, P and R the means over n = 1 .. 6 of the precision and recall.
# White space is left out, case counts. Orders of which one text has no n-gram are left out of both means, as
# sacreBLEU does.
CHRF_ORDER = 6
CHRF_BETA = 2.0
CHRF_COLUMNS = 3 * CHRF_ORDER


def chrf_counts(hypothesis: str, reference: str) -> NDArray[np.int64]:
    """(18,): n-grams in common, of the hypothesis, of the reference, each for n = 1 .. 6."""
    own, true = "".join(hypothesis.split()), "".join(reference.split())
    found = np.zeros((3, CHRF_ORDER), dtype=np.int64)
    for n in range(1, CHRF_ORDER + 1):
        ours, theirs = Counter(ngrams(own, n)), Counter(ngrams(true, n))
        found[:, n - 1] = (ours & theirs).total(), ours.total(), theirs.total()
    return found.ravel()


def chrf_score(pooled: NDArray[np.floating]) -> NDArray[np.float64]:
    """chrF, 0 to 100, of pooled counts (samples, 18) -> (samples,)."""
    counts = np.asarray(pooled, dtype=np.float64).reshape(-1, 3, CHRF_ORDER)
    common, ours, theirs = counts.transpose(1, 0, 2)  # (samples, orders) each
    both = (ours > 0) & (theirs > 0)
    orders = np.maximum(1, both.sum(axis=1))
    precision = np.divide(common, ours, out=np.zeros_like(common), where=both).sum(axis=1) / orders
    recall = np.divide(common, theirs, out=np.zeros_like(common), where=both).sum(axis=1) / orders
    under = CHRF_BETA**2 * precision + recall
    over = 100 * (1 + CHRF_BETA**2) * precision * recall
    return np.divide(over, under, out=np.zeros_like(under), where=under > 0)


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
    """A reply's numbers and names, each counted as often as it is mentioned.

    A number is a run of digits with what joins them (7:30, 1,200, 4.5). An answer may well name what nobody
    named before, so compare the share with that of another text on the same contexts.
    """
    said, known = _NUMBER.findall(reply), set(_NUMBER.findall(context))
    named, words = names(reply), " " + " ".join(_words(context)) + " "
    return Mentions(
        numbers_found=sum(number in known for number in said),
        numbers=len(said),
        names_found=sum(f" {' '.join(_words(name))} " in words for name in named),
        names=len(named),
    )


def names(text: str) -> list[str]:
    """Runs of capitalised words, without a word that begins a sentence: its capital says nothing."""
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
