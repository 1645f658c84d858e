"""Replies to be timed, and completions read back."""

from __future__ import annotations

import json

from dynamo.trace.recorder import RunCounts

PROMPTS = [[5, 6, 7], [8, 9], [250, 4, 11, 12]]


def reply(tokens, passes, seconds):
    """A reply whose first pass is not counted."""
    return RunCounts([5] * (tokens + 1), [1] * (passes + 1), [], 0, tokens, passes, seconds, 100.0)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]
