"""What a setting may be: declared as the type of its field, and read before anything is trained.

``lr: Positive = 1e-3`` is all that a settings class says. Numbers of NumPy become those of Python,
and lists tuples, as they do when settings are saved.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np


@dataclass(frozen=True)
class Range:
    """Numbers that a setting may be.

    Parameters
    ----------
    says
        Completes the sentence "it must be ...".
    holds
        Whether a number is one of them.
    """

    says: str
    holds: Callable[[Any], bool]


Whole = Annotated[int, Range("a whole number, 0 or more", lambda v: v >= 0)]
Count = Annotated[int, Range("a whole number above 0", lambda v: v > 0)]
#: Of a minibatch whose remainder may not be a single cell, on which BatchNorm fails.
BatchSize = Annotated[int, Range("a whole number, 3 or more", lambda v: v >= 3)]
Seed = Annotated[int, Range("a whole number from 0 to 2**32 - 1", lambda v: 0 <= v < 2**32)]
Positive = Annotated[float, Range("a number above 0", lambda v: 0 < v < math.inf)]
NonNegative = Annotated[float, Range("a finite number, 0 or more", lambda v: 0 <= v < math.inf)]
#: Infinity has a meaning.
AnyWeight = Annotated[float, Range("a number, 0 or more", lambda v: v >= 0)]
Share = Annotated[float, Range("a number from 0 to 1", lambda v: 0 <= v <= 1)]
#: A share that leaves something over.
Part = Annotated[float, Range("a number from 0 to less than 1", lambda v: 0 <= v < 1)]

#: What numbers without a range may be.
PLAIN: dict[Any, Range] = {
    int: Range("a whole number", lambda v: True),
    float: Range("a finite number", math.isfinite),
}


def check(name: str, value: Any, kind: Any) -> Any:
    """The value of a setting, in types of Python.

    Parameters
    ----------
    name
        Its name, for the message.
    kind
        The declared type: numbers, with a range or without, ``bool``, ``str``, ``Literal``,
        ``tuple``, or a union of these; values of other types are not looked at.

    Raises
    ------
    ValueError
        It is not of that type, or out of range.
    """
    kinds = _kinds(kind)
    for one in kinds:
        found = _read(value, one)
        if found:
            return found[0]
    if all(get_origin(one) is Literal or one is NoneType for one in kinds):
        known = tuple(v for one in kinds for v in get_args(one) or (None,))
        raise ValueError(f"{name}={value!r} is unknown; known: {known!r}.")
    *first, last = map(_says, kinds)
    says = f"{', '.join(first)} or {last}" if first else last
    raise ValueError(f"{name}={value!r} must be {says}.")


def check_fields(settings: Any) -> None:
    """Read all fields of a settings dataclass, by their declared types.

    Raises
    ------
    ValueError
        One of them is not of its type, or out of range.
    """
    cls: Any = type(settings)
    kinds = _hints(cls)
    for f in fields(settings):
        value = check(f.name, getattr(settings, f.name), kinds[f.name])
        object.__setattr__(settings, f.name, value)


def check_dict(name: str, value: Any) -> dict[str, Any]:
    """A copy of a dictionary of arguments; empty for None.

    Raises
    ------
    TypeError
        It is something else.
    """
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise TypeError(f"{name}={value!r}: pass a dictionary, {{name of the argument: value}}.")
    return dict(value)


@cache
def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _kinds(kind: Any) -> tuple[Any, ...]:
    """The alternatives of a union."""
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _read(value: Any, kind: Any) -> tuple[Any] | None:
    """The value as one of a kind, in a tuple; None if it is none."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:
        return _read_tuple(value, parts)
    if origin is Literal:
        return (str(value),) if isinstance(value, str) and value in parts else None
    if kind is NoneType:
        return (None,) if value is None else None
    if kind is bool:  # "no" would be true
        is_bool = isinstance(value, Integral | np.bool_) and value in (0, 1)
        return (bool(value),) if is_bool else None
    if kind is str:
        return (str(value),) if isinstance(value, str) else None
    number, allowed = parts[:2] if origin is Annotated else (kind, PLAIN.get(kind))
    if number not in PLAIN or not isinstance(allowed, Range):
        return (value,)
    if isinstance(value, bool | np.bool_):
        return None
    if isinstance(value, Integral):
        plain: Any = int(value)
    elif number is float and isinstance(value, Real):
        plain = float(value)
    else:
        return None
    return (plain,) if allowed.holds(plain) else None


def _read_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any] | None:
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return None
    each = [parts[0]] * len(value) if parts[-1] is Ellipsis else list(parts)
    if len(value) != len(each) or not each:
        return None
    found = [_read(v, one) for v, one in zip(value, each, strict=True)]
    return (tuple(v[0] for v in found if v),) if all(found) else None


def _says(kind: Any) -> str:
    """Completes the sentence "it must be ..."."""
    origin, parts = get_origin(kind), get_args(kind)
    if origin is tuple:
        some = parts[-1] is Ellipsis
        return f"{'some' if some else len(parts)} values, each {_says(parts[0])}"
    if origin is Literal:
        return " or ".join(map(repr, parts))
    if kind is NoneType:
        return "None"
    if kind is bool:
        return "True or False"
    if kind is str:
        return "a text"
    return str((parts[1] if origin is Annotated else PLAIN[kind]).says)
