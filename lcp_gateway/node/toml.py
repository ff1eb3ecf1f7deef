"""Reading of settings: TOML files and documents of the same form into dataclasses, with errors that name the key."""

import dataclasses
import difflib
import tomllib
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

T = TypeVar("T")

_TOO_LARGE = 2**63


class ConfigError(ValueError):
    """A setting is unknown, missing or wrong; the text begins with its key."""


def read_toml(path: Path) -> dict[str, Any]:
    """Return a TOML file's document.

    Raises:
        ConfigError: the file cannot be read, or is no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from error


def read_dataclass(cls: type[T], document: Mapping[str, Any], at: str = "") -> T:
    """Build a ``cls`` of a document whose keys are its fields.

    A validation library would do more, and takes longer to import than the whole node takes to start.

    Raises:
        ConfigError: a key is unknown, missing or has a value of the wrong kind, or the class refuses it (``ValueError``).
    """
    if not dataclasses.is_dataclass(cls):
        raise TypeError("cls must be a dataclass")
    hints = get_type_hints(cls)
    fields = {each.name: each for each in dataclasses.fields(cls)}
    for key in document:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, 1)
            raise ConfigError(f"{at}{key}: unknown key" + (f", nearest is {near[0]}" if near else ""))
    for name, each in fields.items():
        required = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if required and name not in document:
            raise ConfigError(f"{at}{name}: missing")
    values = {key: _read(hints[key], value, at + key) for key, value in document.items()}
    try:
        return cls(**values)
    except ValueError as error:
        # A class of the protocol begins its errors with its own name, which is often the key's too.
        table = at.rstrip(".")
        text = str(error).removeprefix(f"{table.rpartition('.')[2]}: ")
        raise ConfigError(f"{table}: {text}" if table else text) from error


def _read(wanted: Any, value: Any, at: str) -> Any:
    if get_origin(wanted) is tuple:
        if not isinstance(value, list):
            raise ConfigError(f"{at}: must be a list")
        item = get_args(wanted)[0]
        return tuple(_read(item, entry, f"{at}[{index}]") for index, entry in enumerate(value))
    if get_origin(wanted) is Literal:
        if value not in get_args(wanted):
            raise ConfigError(f"{at}: must be one of {', '.join(map(repr, get_args(wanted)))}")
        return value
    if isinstance(wanted, types.UnionType):
        wanted = next(kind for kind in get_args(wanted) if kind is not types.NoneType)
    if dataclasses.is_dataclass(wanted) and isinstance(wanted, type):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{at}: must be a table")
        return read_dataclass(wanted, value, at + ".")
    return _read_scalar(wanted, value, at)


def _read_scalar(wanted: Any, value: Any, at: str) -> Any:
    make = wanted
    if wanted is Path:
        wanted = str
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    # A bool is an int to Python; where a number belongs it is the operator's mistake.
    if not isinstance(value, wanted) or (wanted is not bool and isinstance(value, bool)):
        raise ConfigError(f"{at}: must be of type {wanted.__name__}, not {type(value).__name__}")
    if isinstance(value, int | float) and not isinstance(value, bool) and not 0 <= value < _TOO_LARGE:
        raise ConfigError(f"{at}: must not be negative" if value < 0 else f"{at}: must be a number below 2^63")
    return make(value)
