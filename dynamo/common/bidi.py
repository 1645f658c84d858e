"""Text of others inside our own sentences: Hebrew and Arabic run from right to left, and invisible characters
command directions until a paragraph's end.

Neither may turn round what stands beside it, or a label says another number than it holds. The page's scripts
have the same in `assets/common/direction.js`.
"""

from __future__ import annotations

import html
import re
import unicodedata

_COMMANDS = re.compile("[\u202a-\u202e\u2066-\u2069]")
_FROM_THE_RIGHT = {"R", "AL", "AN"}


def spelled(text: str) -> str:
    """Commands of direction as their code points, which command nothing."""
    return _COMMANDS.sub(lambda command: f"⟨U+{ord(command[0]):X}⟩", text)


def bidi_isolate(text: str) -> str:
    """`spelled`; and a text that runs from right to left stays by itself."""
    plain = spelled(text)
    turned = not plain.isascii() and any(unicodedata.bidirectional(each) in _FROM_THE_RIGHT for each in plain)
    return f"\u2068{plain}\u2069" if turned else plain


def in_html(text: str) -> str:
    """`apart`, for a page that reads HTML."""
    return html.escape(bidi_isolate(text))
