"""The options of Algorithm 1. Where the paper leaves something open, the defaults are our reading of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from dynamo.common.options import check_types, option
from dynamo.common.validation import short_repr
from dynamo.sampling import joint

MAX_ORDER = 5
CORRECTIONS = ("table", "smoothed", "correlator", "none")
DRAWS = ("joint", "anchored")


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are chosen. Defaults are the paper's; names in parentheses are its symbols.

    Raises ValueError naming the option, its range and the value received.
    """

    threshold: float = option(
        0.5, "back-off threshold (eps_b), 0 to 1: 0 always emits all tokens, 1 always one"
    )
    top_k: int = option(50, "candidates of each head (k), 1 or more")
    temperature: float = option(0.7, "softmax temperature, 0 or more; 0 takes the largest cell")
    repetition_penalty: float = option(
        1.1, "divides the probability of repeated tokens, 1 or more; 1 is none"
    )
    mask_strength: float = option(
        1.0, "exponent of the co-occurrence mask (alpha_c), 0 or more; 0 is no mask"
    )
    adaptive: bool = option(True, "adaptive threshold by Otsu's method (AT)")
    blur: int = option(3, "width of the Gaussian blur before Otsu, 3 or 1; 1 is none")
    max_order: int = option(3, f"most tokens of one pass (n), 1 to {MAX_ORDER}")
    correction: str = option(
        "table",
        "what corrects the heads' independence: the co-occurrence table, its counts smoothed, the "
        "checkpoint's correlator (these two are not in the paper) or nothing",
        CORRECTIONS,
    )
    draw: str = option(
        "joint",
        "draw whole chunks from the joint or, not in the paper, the first token as the base does and the "
        "rest given the tokens before it (anchored)",
        DRAWS,
    )
    min_kept_mass: float = option(0.0, "back off where the mask keeps less of the product than this, 0 to 1")
    adaptive_first: bool = option(False, "adaptive before static threshold (ablation)")
    exact: bool = option(False, "exact mode: verify, so that the text is distributed as the first head's")
    exact_threshold: float = option(
        0.0,
        "how likely drafts of exact mode must be, as the heads see them, 0 to 1: 0 drafts freely, 1 nothing",
    )
    exact_vocabulary: int = option(
        0,
        "exact mode on float32 copies (CPU) drafts only so many tokens, top_k at least: those that the "
        "checkpoint lists as the most frequent, or else the vocabulary's first; 0 drafts any",
    )

    def __post_init__(self):
        check_types(self, leave_out=("top_k", "max_order", "exact_vocabulary"))
        self._require(
            "threshold",
            0 <= self.threshold <= 1,
            "0 to 1",
            "0.5 is the default; 1 never emits more than one token",
        )
        self._require(
            "top_k", _whole(self.top_k) and self.top_k >= 1, "a whole number, 1 or more", "50 is the default"
        )
        self._require("temperature", 0 <= self.temperature < float("inf"), "0 or more", "0 is greedy")
        penalty = 1 <= self.repetition_penalty < float("inf")
        self._require("repetition_penalty", penalty, "1 or more", "1 is no penalty")
        self._require("mask_strength", 0 <= self.mask_strength < float("inf"), "0 or more", "0 is no mask")
        self._require("blur", self.blur in joint.BLUR, "1 or 3", "1 is no blur")
        orders = _whole(self.max_order) and 1 <= self.max_order <= MAX_ORDER
        self._require("max_order", orders, f"1 to {MAX_ORDER}", "1 emits single tokens")
        self._require("min_kept_mass", 0 <= self.min_kept_mass <= 1, "0 to 1", "0 is the paper's")
        drafted = _whole(self.exact_vocabulary) and self.exact_vocabulary >= 0
        self._require("exact_vocabulary", drafted, "a whole number, 0 or more", "0 drafts any token")
        self._require("exact_threshold", 0 <= self.exact_threshold <= 1, "0 to 1", "0 drafts freely")

    def _require(self, name: str, holds: bool, allowed: str, remedy: str) -> None:
        if not holds:
            raise ValueError(f"{name}: expected {allowed}, got {short_repr(getattr(self, name))} ({remedy})")

    @classmethod
    def chosen(cls, values: Mapping[str, Any] | None) -> SamplingOptions:
        """The options that a model's config stores (`DynamoConfig.sampling`), with defaults for the rest.
        Raises ValueError for an unknown name or a value out of its range."""
        values = values or {}
        if unknown := set(values) - {each.name for each in fields(cls)}:
            raise ValueError(
                f"sampling: expected names of options, got {short_repr(sorted(unknown, key=str))}"
            )
        return cls(**values)

    @property
    def highest_order(self) -> int:
        """The largest order that can be drawn: at threshold 1 no joint value is above the threshold."""
        threshold = self.exact_threshold if self.exact else self.threshold
        return 1 if threshold >= 1 else self.max_order


def _whole(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)
