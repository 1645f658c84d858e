"""Does a text repeat itself, and do replies differ from each other?

Counts, not shares, so that many texts are pooled by adding up.
"""

from __future__ import annotations

from collections.abc import Sequence


def ngrams(tokens: Sequence[int], n: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]


def repeated(tokens: Sequence[int], n: int = 4) -> tuple[int, int]:
    """Of a text's n-grams how many stood in it before, and how many there are: seq-rep-n as a fraction.

    seq-rep-n is 1 - distinct / all (Welleck et al., Neural text generation with unlikelihood training, 2020).
    """
    grams = ngrams(tokens, n)
    return len(grams) - len(set(grams)), len(grams)


def distinct(texts: Sequence[Sequence[int]], n: int = 2) -> tuple[int, int]:
    """How many different n-grams several texts have together, and how many in all: distinct-n as a fraction.

    (Li et al., A diversity-promoting objective function, 2016.) It falls with the amount of text, so compare
    equally many texts of about the same length.
    """
    grams = [gram for tokens in texts for gram in ngrams(tokens, n)]
    return len(set(grams)), len(grams)
