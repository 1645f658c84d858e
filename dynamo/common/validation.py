"""Validation of JSON from outside: a file, an upload, what a browser sends back.

Python's parser accepts more than JSON (NaN, Infinity), silently overflows to infinity, lets lone surrogates
through, which cannot be encoded again, and raises RecursionError for deeply nested values. Here each of these
is either repaired or a ValueError, so callers need not handle them.
"""

from __future__ import annotations

import json
import math
import re
import reprlib
from typing import Any

MAX_INT_DIGITS = 18  # fit in a 64-bit integer
MAX_NAME_LENGTH = 200  # characters of a setting that is a name
_NOT_SPACE = re.compile(r"\S")
MAX_REPR_DIGITS = 4000  # Python refuses to format integers of more than 4,300 digits, by default


class _Short(reprlib.Repr):
    def repr_int(self, value: int, level: int) -> str:
        digits = int(value.bit_length() * math.log10(2)) + 1
        return super().repr_int(value, level) if digits < MAX_REPR_DIGITS else f"about {digits} digits"


# Visits no more than it shows: a small file may hold millions of items.
_SHORT = _Short()
_SHORT.maxlevel = 3
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 200


def parse_json(text: str, *, finite: bool = True) -> Any:
    """Parse a JSON text. finite: reject NaN and numbers too large for a float.

    A byte-order mark, which editors of Windows write, is skipped. Integers that do not fit in 64 bits become
    floats; lone surrogates become question marks. Raises ValueError, a json.JSONDecodeError for what is no
    JSON.
    """
    checks = {"parse_constant": _reject, "parse_float": _finite, "parse_int": _int} if finite else {}
    try:
        value = json.loads(text.removeprefix("\ufeff"), **checks)
        if "\\ud" in text.lower() or _has_surrogates(text):
            value = json.loads(_without_surrogates(json.dumps(value, ensure_ascii=False)))
        return value
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None


def parse_json_values(text: str) -> list[Any]:
    """The JSON values that stand one after another in a text. NaN is read, lone surrogates are kept.

    Raises ValueError, a json.JSONDecodeError if the text is not JSON.
    """
    decoder, values, end = json.JSONDecoder(), [], 0
    try:
        while begin := _NOT_SPACE.search(text, end):
            value, end = decoder.raw_decode(text, begin.start())
            values.append(value)
    except RecursionError:
        raise ValueError("its values are nested too deeply") from None
    return values


def require_int(name: str, value: Any, least: int = 0, most: int = 2**31 - 1) -> int:
    """A parsed value as an int from `least` to `most`. Raises TypeError or ValueError naming both."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
        raise TypeError(f'"{name}" must be a whole number, got {short_repr(value)}')
    if not least <= value <= most:
        raise ValueError(f'"{name}" must be {least} to {most}, got {short_repr(value)}')
    return int(value)


def number(name: str, value: Any, least: float = -math.inf, most: float = math.inf) -> float:
    """A parsed value as a finite float from `least` to `most`. Raises TypeError or ValueError naming both."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f'"{name}" must be a number, got {short_repr(value)}')
    if not least <= value <= most:
        raise ValueError(f'"{name}" must be {least:g} to {most:g}, got {short_repr(value)}')
    return float(value)


def clean(text: str) -> str:
    """A text with its lone surrogates, which have no UTF-8, replaced by question marks."""
    return _without_surrogates(text) if _has_surrogates(text) else text


def message(name: str, value: Any) -> str:
    """A text that a user typed, lone surrogates replaced. Raises ValueError for anything but a str."""
    if not isinstance(value, str):
        raise ValueError(f"{name}: expected text, got {short_repr(value)}")
    return clean(value)


def settings(fields: Any, called: str = "options") -> dict[str, Any]:
    """A run's settings: numbers, switches and short names. Raises TypeError or ValueError for others."""
    if not isinstance(fields, dict):
        raise TypeError(f'"{called}" must be names and values, got {short_repr(fields)}')
    for name, value in fields.items():
        named = isinstance(value, str) and len(value) <= MAX_NAME_LENGTH
        if not (value is None or named or isinstance(value, bool | int | float)):
            raise ValueError(
                f'"{called}": {short_repr(name)} must be a number, a switch or a name, '
                f"got {short_repr(value)}"
            )
    return dict(fields)


def short_repr(value: Any, longest: int = 80) -> str:
    """`repr` for an error message, shortened to at most `longest` characters."""
    text = _SHORT.repr(value)
    return text if len(text) <= longest else text[: longest - 2] + " …"


def _reject(constant: str) -> float:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"the number {short_repr(digits)} is too large")
    return value


def _int(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_INT_DIGITS else _finite(digits)


def _has_surrogates(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text)


def _without_surrogates(text: str) -> str:
    return text.encode("utf-8", errors="replace").decode()
