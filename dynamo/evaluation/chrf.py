"""chrF: overlap of two texts in character n-grams (Popović, chrF: character n-gram F-score for automatic MT
evaluation, 2015).

chrF = (1 + β²) P R / (β² P + R) with β = 2, P and R the means over n = 1 .. 6 of the precision and the recall
of character n-grams; white space is left out, case counts. Orders of which one text has no n-gram are left
out of both means, as sacreBLEU does. Counts are kept apart from the score, so that many texts are pooled by
adding up and resampled.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

ORDER = 6
BETA = 2.0
COLUMNS = 3 * ORDER


def counts(hypothesis: str, reference: str) -> NDArray[np.int64]:
    """(18,): n-grams in common, of the hypothesis, of the reference, each for n = 1 .. 6."""
    own, true = "".join(hypothesis.split()), "".join(reference.split())
    found = np.zeros((3, ORDER), dtype=np.int64)
    for n in range(1, ORDER + 1):
        ours, theirs = _ngrams(own, n), _ngrams(true, n)
        found[:, n - 1] = (ours & theirs).total(), ours.total(), theirs.total()
    return found.ravel()


def score(pooled: NDArray[np.floating]) -> NDArray[np.float64]:
    """chrF, 0 to 100, of pooled counts (samples, 18) -> (samples,)."""
    common, ours, theirs = np.asarray(pooled, dtype=np.float64).reshape(-1, 3, ORDER).transpose(1, 0, 2)
    both = (ours > 0) & (theirs > 0)
    orders = np.maximum(1, both.sum(axis=1))
    precision = np.divide(common, ours, out=np.zeros_like(common), where=both).sum(axis=1) / orders
    recall = np.divide(common, theirs, out=np.zeros_like(common), where=both).sum(axis=1) / orders
    under = BETA**2 * precision + recall
    over = 100 * (1 + BETA**2) * precision * recall
    return np.divide(over, under, out=np.zeros_like(under), where=under > 0)


def chrf(hypothesis: str, reference: str) -> float:
    """chrF of one text, 0 to 100."""
    return float(score(counts(hypothesis, reference)[None])[0])


def _ngrams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))
