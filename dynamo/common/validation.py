"""JSON that somebody else wrote: a file, an upload, what a browser sends back.

Python's reader takes more than JSON has (NaN, Infinity), overflows to infinity without a word, lets half of a
character through that cannot be written down again, and leaves by RecursionError where values are nested too
deeply. Here all of these are a ValueError or mended, so that who reads a value need not think of them.
"""

from __future__ import annotations

import json
import math
import reprlib
from typing import Any

LONGEST_WHOLE = 18  # digits that every 64-bit integer has room for
LONGEST_SETTING = 200  # characters of a setting that is a name

LONGEST_WRITTEN = 4000  # digits; Python refuses to write some more, by default, in a sentence of its own


class _Short(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        digits = int(value.bit_length() * math.log10(2)) + 1
        return super().repr_int(value, level) if digits < LONGEST_WRITTEN else f"about {digits} digits"


# Looks no deeper than it shows: a value may be a small file's millions of items.
_SHORT = _Short()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def parse_json(text: str, *, finite: bool = True) -> Any:
    """The value of a JSON text. finite: refuse NaN and numbers too large for a float.

    Whole numbers that no 64-bit integer holds become floats; lone surrogates become question marks. Raises
    ValueError, which is a json.JSONDecodeError where the text is no JSON.
    """
    checks = {"parse_constant": _refuse, "parse_float": _finite, "parse_int": _whole} if finite else {}
    try:
        value = json.loads(text, **checks)
        if "\\ud" in text.lower() or _broken(text):
            value = json.loads(_mended(json.dumps(value, ensure_ascii=False)))
        return value
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def require_int(name: str, value: Any, least: int = 0, most: int = 2**31 - 1) -> int:
    """A whole number of a parsed value. Raises TypeError or ValueError naming the field and its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise TypeError(f'"{name}" must be a whole number, got {short_repr(value)}')
    if not least <= value <= most:
        raise ValueError(f'"{name}" must be {least} to {most}, got {short_repr(value)}')
    return int(value)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A finite number of a parsed value. Raises TypeError or ValueError naming the field and its range."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f'"{name}" must be a number, got {short_repr(value)}')
    if not least <= value <= most:
        raise ValueError(f'"{name}" must be {least:g} to {most:g}, got {short_repr(value)}')
    return float(value)


def message(name: str, value: Any) -> str:
    """A text that somebody typed, lone surrogates mended. Raises ValueError for anything else."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {short_repr(value)}")
    return _mended(value) if _broken(value) else value


def settings(fields: Any, called: str = "options") -> dict[str, Any]:
    """What a run was made with: numbers, switches and short names. Raises TypeError or ValueError."""
    if not isinstance(fields, dict):
        raise TypeError(f'"{called}" must be names and values, got {short_repr(fields)}')
    for name, value in fields.items():
        named = isinstance(value, str) and len(value) <= LONGEST_SETTING
        if not (value is None or named or isinstance(value, bool | int | float)):
            raise ValueError(
                f'"{called}": {short_repr(name)} must be a number, a switch or a name, '
                f"got {short_repr(value)}"
            )
    return dict(fields)


def short_repr(value: Any, longest: int = 80) -> str:
    """A value for an error's sentence, cut where it is long."""
    told = _SHORT.repr(value)
    return told if len(told) <= longest else told[: longest - 2] + " …"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number that JSON has")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {short_repr(digits)} is too large")
    return value


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONGEST_WHOLE else _finite(digits)


def _broken(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _mended(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()
