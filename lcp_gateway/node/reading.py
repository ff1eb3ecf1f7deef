"""Reads frozen dataclasses out of plain documents, with errors that name the key.

A validation library would do more, and would take longer to import than the whole node takes to start.
"""

import dataclasses
import difflib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")


class ConfigError(ValueError):
    """A setting is unknown, missing or wrong; the text begins with its key."""


def read_dataclass(cls: type[T], document: Mapping[str, Any], at: str = "") -> T:
    """Make a ``cls`` of a document whose keys are its fields.

    Raises:
        ConfigError: a key is unknown, missing or has a value of the wrong kind.
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError("cls must be a dataclass")
    hints = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in document:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise ConfigError(
                f"{at}{key}: unknown key" + (f", nearest is {near[0]}" if near else "")
            )
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in document:
            raise ConfigError(f"{at}{name}: missing")
    values = {key: _read(hints[key], value, at + key) for key, value in document.items()}
    return cls(**values)


def _read(wanted: Any, value: Any, at: str) -> Any:
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{at}: must be a list")
        item = get_args(wanted)[0]
        return tuple(_read(item, entry, f"{at}[{index}]") for index, entry in enumerate(value))
    if isinstance(wanted, types.UnionType):
        wanted = next(kind for kind in get_args(wanted) if kind is not types.NoneType)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at}: must be a table")
        return read_dataclass(wanted, value, at + ".")
    if wanted is Path:
        wanted, make = str, Path
    else:
        make = wanted
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A bool is an int to Python, and a mistake to whoever wrote it where a number belongs.
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise ConfigError(f"{at}: must be of type {wanted.__name__}, not {type(value).__name__}")
    if isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
        raise ConfigError(f"{at}: must not be negative")
    return make(value)
