"""Options as dataclasses, flags derived from them: a default and its explanation are written once.

A field made with `option` carries its help text; `add_arguments` turns every such field into a flag, and
`from_arguments` builds the dataclass again, whose own checks refuse bad values.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from dataclasses import MISSING, field, fields
from typing import Any, TypeVar, get_type_hints

T = TypeVar("T")


def option(default: Any, help: str) -> Any:
    """A dataclass field with a default and the help text of its flag."""
    return field(default=default, metadata={"help": help})


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
