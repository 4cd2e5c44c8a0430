"""What all types of ttscope can do: go to JSON and back, and name themselves by a short key."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from typing import Annotated, Any, Self, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from traces.plain_text import COMMANDS

# The ranges of fields, which hold where a recording is opened and where a plugin's words are read.
MOST, LARGEST = 1 << 50, 1e30
LONGEST = 1_024  # characters of a text that users give, where a model may be a path
Count = Annotated[int, Meta(ge=0, le=MOST)]
Some = Annotated[int, Meta(ge=1, le=MOST)]
Few = Annotated[int, Meta(ge=1, le=1 << 10)]  # what there is an array for each of: ranks, servers
Many = Annotated[int, Meta(ge=1, le=1 << 20)]  # what an array holds: tokens of a block, requests
Amount = Annotated[float, Meta(ge=0, le=LARGEST)]
Rate = Annotated[float, Meta(ge=1 / LARGEST, le=LARGEST)]  # a second


class Record:
    """A frozen dataclass that goes to JSON and back."""

    def to_json(self) -> dict[str, Any]:
        """Return plain dicts, lists and scalars; absent values stay None."""
        return {
            field.name: _plain(getattr(self, field.name))
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Build from `to_json`'s dict; fields it does not name keep their defaults."""
        hints = _hints(cls)  # type: ignore[arg-type]
        names = {field.name for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
        return cls(**{name: _typed(hints[name], data[name]) for name in names if name in data})

    def key(self) -> str:
        """Return a short name: the first letter of the type and eight hex digits of a hash."""
        text = json.dumps(self.to_json(), sort_keys=True)
        digest = hashlib.sha256(text.encode()).hexdigest()[:8]
        return f"{type(self).__name__[0].lower()}-{digest}"


_hints = functools.cache(get_type_hints)
_KINDS: dict[type, tuple[type | tuple[type, ...], str]] = {
    int: (int, "a whole number"),
    float: ((int, float), "a number"),
    bool: (bool, "true or false"),
    str: (str, f"a text of one line, at most {LONGEST:,} characters"),
}


def misfit(record: type[Any], name: str, value: Any) -> str | None:
    """Return what the value of a field must be, such as "a whole number", None where it fits.

    A name that is no field, and a field of another kind than these, fits all.
    """
    kinds = _parts(_hints(record).get(name))  # type: ignore[arg-type]
    kind = next((each for each in kinds if each in _KINDS), None)
    if kind is None or (value is None and type(None) in kinds):
        return None
    allowed, words = _KINDS[kind]
    fits = isinstance(value, allowed) and (kind is bool or not isinstance(value, bool))
    if kind is str and fits:
        fits = len(value) <= LONGEST and not COMMANDS.search(value)
    return None if fits and (kind is not float or math.isfinite(value)) else words


def fitting(record: type[Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a record can hold of values that a server tells, by the ranges of its fields."""
    hints = get_type_hints(record, include_extras=True)
    kept = {}
    for name, value in values.items():
        with contextlib.suppress(msgspec.ValidationError):
            msgspec.convert(_plain(value), hints[name])
            kept[name] = value
    return kept


def _parts(hint: Any) -> tuple[Any, ...]:
    """Return the types of which a field takes one."""
    return get_args(hint) if get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    return value


def _typed(hint: Any, value: Any) -> Any:
    """Rebuild the tuples and records that JSON flattened."""
    if value is None:
        return None
    origin = get_origin(hint)
    if origin is types.UnionType or origin is typing.Union:
        options = [option for option in get_args(hint) if option is not type(None)]
        return _typed(options[0], value)
    if origin is tuple:
        inner = get_args(hint)
        if inner[-1] is Ellipsis:
            inner = (inner[0],) * len(value)
        return tuple(_typed(part, item) for part, item in zip(inner, value, strict=True))
    if origin is dict:
        return {key: _typed(get_args(hint)[1], item) for key, item in value.items()}
    if isinstance(hint, type) and issubclass(hint, Record):
        return hint.from_json(value)
    return value
