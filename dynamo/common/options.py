"""Options as dataclasses with flags derived from them: a default and its help text are written once.

A field made with `option` or `required` carries its help text. `add_arguments` turns every such field into a
flag, `from_arguments` builds the dataclass again, whose own checks reject bad values, and `to_arguments`
writes it as flags. The fields of a nested dataclass become flags too, except names that the outer one has.
"""

from __future__ import annotations

import argparse
import difflib
import numbers
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

from dynamo.common.validation import short_repr

T = TypeVar("T")
LARGEST = sys.float_info.max


def option(default: Any, help: str, choices: Collection[str] = ()) -> Any:
    """A dataclass field with a default and the help text of its flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


def required(help: str) -> Any:
    """A dataclass field without a default, and the help text of its flag."""
    return field(metadata={"help": help})


def check_types(options: Any, leave_out: Collection[str] = ()) -> None:
    """Raise ValueError unless every field of a dataclass has its annotated type, and one of its choices if
    it has any.

    An integer is accepted for a float, a bool is not; numpy's types count as Python's. Ranges, NaN and
    infinities are checked by the dataclass itself.
    """
    for each in fields(options):
        value = getattr(options, each.name)
        if each.name in leave_out or is_dataclass(value) or (value is None and each.default is None):
            continue
        kind = _KINDS[_type(type(options), each.name)]
        if not kind.holds(value):
            raise ValueError(f"{each.name}: expected {kind.name}, got {short_repr(value)}")
        choices = each.metadata.get("choices")
        if choices and value not in choices:
            raise ValueError(f"{each.name}: expected {', '.join(choices)}, got {short_repr(value)}")


class _Kind(NamedTuple):
    name: str
    holds: Callable[[Any], bool]


def _switch(value: Any) -> bool:
    return type(value).__name__ in ("bool", "bool_")  # Python's and numpy's


def _number(value: Any) -> bool:
    # An integer above the largest float cannot be converted to one.
    whole = isinstance(value, numbers.Integral)
    return isinstance(value, numbers.Real) and not _switch(value) and not (whole and abs(value) > LARGEST)


def _words(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) > 0 and all(isinstance(each, str) for each in value)


WORDS = tuple[str, ...]
_KINDS = {
    bool: _Kind("true or false", _switch),
    int: _Kind("a whole number", lambda value: isinstance(value, numbers.Integral) and not _switch(value)),
    float: _Kind("a number", _number),
    str: _Kind("a word", lambda value: isinstance(value, str)),
    Path: _Kind("a path", lambda value: isinstance(value, Path)),
    WORDS: _Kind("a tuple of words", _words),
}
_hints = cache(get_type_hints)


def _type(cls: type, name: str) -> Any:
    """The annotation of a field; int for `int | None`."""
    hint = _hints(cls)[name]
    return hint if hint in _KINDS else get_args(hint)[0]


def add_arguments(
    parser: argparse.ArgumentParser,
    cls: type,
    leave_out: Collection[str] = (),
    absent: bool = False,
    partial: bool = False,
    **defaults: Any,
) -> None:
    """Add a flag for every field of a dataclass except `leave_out`; `defaults` override the dataclass's own.

    absent: leave flags that are not given out of the namespace, for the defaults of `from_arguments`;
    partial: required ones too.
    """
    group = parser.add_argument_group(cls.__name__)
    own = [each for each in fields(cls) if each.name not in leave_out]
    outer = [*leave_out, *(each.name for each in own)]
    for each in own:
        default = defaults.get(each.name, each.default)
        if is_dataclass(default):
            add_arguments(parser, type(default), outer, absent, partial, **vars(default))
            continue
        kind = _type(cls, each.name)
        shown = "" if default in (None, MISSING, "") else f" (default: {default})"
        settings: dict[str, Any] = {"type": kind, "choices": each.metadata.get("choices") or None}
        if kind is bool:
            settings = {"action": argparse.BooleanOptionalAction}
        elif kind == WORDS:
            settings = {"nargs": "+"}
        group.add_argument(
            _flag(each.name),
            dest=each.name,
            default=argparse.SUPPRESS if absent else default,
            required=default is MISSING and not partial,
            help=each.metadata["help"] + shown,
            **settings,
        )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def from_arguments(cls: type[T], arguments: argparse.Namespace, **defaults: Any) -> T:
    """The dataclass from parsed flags, `defaults` for absent flags; other flags are ignored. Raises the
    dataclass's ValueError."""
    known = _names(cls)
    return from_values(cls, {k: v for k, v in {**defaults, **vars(arguments)}.items() if k in known})


def from_values(cls: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass from values by name, including a nested dataclass's. Raises ValueError for another name,
    and the dataclass's."""
    if unknown := sorted(values.keys() - _names(cls)):
        near = difflib.get_close_matches(unknown[0], _names(cls), n=1)
        remedy = f"; did you mean {near[0]}?" if near else f", which has {', '.join(sorted(_names(cls)))}"
        raise ValueError(f"{unknown[0]}: no option of {cls.__name__}{remedy}")
    names = {each.name for each in fields(cls)}
    given = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    own = {name: value for name, value in given.items() if name in names}
    for each in fields(cls):
        if is_dataclass(each.default) and each.name not in own:
            inner = {name: given[name] for name in vars(each.default) if name in given and name not in names}
            own[each.name] = replace(each.default, **inner)
    return cls(**own)


def _names(cls: type) -> set[str]:
    """Of a dataclass's fields and of its nested dataclasses' fields."""
    return {
        name
        for each in fields(cls)
        for name in (each.name, *(vars(each.default) if is_dataclass(each.default) else ()))
    }


def to_arguments(options: Any, usual: Any, leave_out: Collection[str] = ()) -> list[str]:
    """The flags that turn `usual`, a value of the same dataclass, into `options`."""
    words = []
    own = [each for each in fields(options) if each.name not in leave_out]
    outer = [*leave_out, *(each.name for each in own)]
    for each in own:
        value = getattr(options, each.name)
        if is_dataclass(value):
            words += to_arguments(value, getattr(usual, each.name), outer)
        elif value is not None and (each.default is MISSING or value != getattr(usual, each.name)):
            flag = _flag(each.name)
            if isinstance(value, bool):
                words.append(flag if value else f"--no{flag[1:]}")
            else:
                words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """`parser.parse_args`, with an error for `--flag=--`, which Python 3.11 parses as an empty list."""
    for argument in arguments:
        if argument == "--":
            break
        flag, _, value = argument.partition("=")
        if flag.startswith("-") and value == "--":
            parser.error(f"argument {flag}: '--' is not a value")
    return parser.parse_args(arguments)
