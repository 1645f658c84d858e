"""Options as dataclasses, flags derived from them: a default and its explanation are written once.

A field made with `option` carries its help text; `add_arguments` turns every such field into a flag, and
`from_arguments` builds the dataclass again, whose own checks refuse bad values.
"""

from __future__ import annotations

import argparse
import numbers
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, field, fields
from functools import cache
from typing import Any, NamedTuple, TypeVar, get_type_hints

from dynamo.common.validation import short_repr

T = TypeVar("T")
LARGEST = sys.float_info.max


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text of its flag."""
    return field(default=default, metadata={"help": help})


def check_types(options: Any, leave_out: Collection[str] = ()) -> None:
    """Raise ValueError unless every field of a dataclass holds what its annotation says.

    Whole numbers serve where numbers are asked for, switches do not; a number may be any library's. Ranges,
    NaN and infinities are the dataclass's own to check.
    """
    for name, kind in _hints(type(options)).items():
        value = getattr(options, name)
        if name not in leave_out and not _KINDS[kind].holds(value):
            raise ValueError(f"{name}: expected {_KINDS[kind].told}, got {short_repr(value)}")


_hints = cache(get_type_hints)


class _Kind(NamedTuple):
    told: str
    holds: Callable[[Any], bool]


def _switch(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's and numpy's


def _number(value: Any) -> bool:
    # Whole numbers above the largest float are none.
    whole = isinstance(value, numbers.Integral)
    return isinstance(value, numbers.Real) and not _switch(value) and not (whole and abs(value) > LARGEST)


_KINDS = {
    bool: _Kind("true or false", _switch),
    int: _Kind("a whole number", lambda value: isinstance(value, numbers.Integral) and not _switch(value)),
    float: _Kind("a number", _number),
    str: _Kind("a word", lambda value: isinstance(value, str)),
}


def add_arguments(
    parser: argparse.ArgumentParser,
    cls: type,
    leave_out: Collection[str] = (),
    absent: bool = False,
    **defaults: Any,
) -> None:
    """A flag for every field of a dataclass but those left out, which keep the dataclass's default;
    `defaults` replace the dataclass's own for this command. With `absent`, flags that are not given are left
    to `from_arguments`."""
    hints = get_type_hints(cls)
    group = parser.add_argument_group(cls.__name__)
    for each in fields(cls):
        if each.name in leave_out:
            continue
        default = defaults.get(each.name, each.default)
        assert default is not MISSING, f"{cls.__name__}.{each.name} has no default to show"
        kind = argparse.BooleanOptionalAction if hints[each.name] is bool else None
        group.add_argument(
            "--" + each.name.replace("_", "-"),
            dest=each.name,
            default=argparse.SUPPRESS if absent else default,
            help=f"{each.metadata['help']} (default: {default})",
            **({"action": kind} if kind else {"type": hints[each.name]}),
        )


def from_arguments(cls: type[T], arguments: argparse.Namespace, **defaults: Any) -> T:
    """The dataclass from parsed flags, `defaults` where a flag is absent. Raises its ValueError for values
    out of range."""
    given = {**defaults, **vars(arguments)}
    return cls(**{each.name: given[each.name] for each in fields(cls) if each.name in given})


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """`parser.parse_args`; exits with a sentence for `--flag=--` as well, which Python 3.11 takes for a flag
    with an empty list."""
    for argument in arguments:
        if argument == "--":
            break
        flag, _, value = argument.partition("=")
        if flag.startswith("-") and value == "--":
            parser.error(f"argument {flag}: '--' is no value")
    return parser.parse_args(arguments)
