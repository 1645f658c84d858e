"""Bidirectional text: keep quoted text from reordering the sentence around it.

Hebrew and Arabic run from right to left, and invisible control characters change the direction of everything
up to the end of the paragraph, so a label could show another number than it holds. The page's scripts do the
same in `assets/common/direction.js`.
"""

from __future__ import annotations

import html
import re
import unicodedata

_CONTROLS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_RIGHT_TO_LEFT = {"R", "AL", "AN"}


def spell_bidi_controls(text: str) -> str:
    """The text with directional control characters written as their code points, without effect."""
    return _CONTROLS.sub(lambda control: f"⟨U+{ord(control[0]):X}⟩", text)


def bidi_isolate(text: str) -> str:
    """`spell_bidi_controls`, and isolated from its surroundings if it runs from right to left."""
    plain = spell_bidi_controls(text)
    reordered = not plain.isascii() and any(unicodedata.bidirectional(c) in _RIGHT_TO_LEFT for c in plain)
    return f"\u2068{plain}\u2069" if reordered else plain


def in_html(text: str) -> str:
    """`bidi_isolate`, escaped for HTML."""
    return html.escape(bidi_isolate(text))
