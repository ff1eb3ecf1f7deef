"""Settings made of tables: parsing, display, description, and the names of places in them.

Each table becomes a frozen dataclass whose fields have the types of ``parsers``. Pydantic reads them, so that all problems
are found at once. A field that is left out of the dataclass's ``repr`` is a secret.
"""

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from pydantic import ConfigDict
from pydantic.fields import FieldInfo

from lcp_gateway.config.parsers import Form

REDACTED: Final = "(redacted)"

ROW_CONFIG: Final = ConfigDict(extra="forbid", hide_input_in_errors=True)
"""The ``__pydantic_config__`` of a table's dataclass."""

_BARE_KEY = re.compile(r"\w[\w-]*", re.ASCII)


@dataclasses.dataclass(frozen=True, slots=True)
class Column:
    """A field of a table, for the docs."""

    name: str
    form: Form
    description: str
    required: bool
    default: object
    secret: bool


def columns(row: type) -> tuple[Column, ...]:
    """Return the fields of a table that becomes ``row``."""
    hints = get_type_hints(row, include_extras=True)
    found = []
    for field in dataclasses.fields(row):
        _, *metadata = get_args(hints[field.name])
        found.append(
            Column(
                name=field.name,
                form=next(item for item in metadata if isinstance(item, Form)),
                description=_description(metadata),
                required=field.default is dataclasses.MISSING,
                default=field.default,
                secret=not field.repr,
            )
        )
    return tuple(found)


def _description(metadata: Iterable[object]) -> str:
    return next((item.description or "" for item in metadata if isinstance(item, FieldInfo)), "")


def list_of_tables(value: object) -> object:
    """Read an array of tables, or the JSON of one; rows that are parsed already stay. No message repeats the value."""
    found = _from_json(value)
    if not isinstance(found, list | tuple) or any(map(_is_no_table, found)):
        raise ValueError("must be an array of tables; in the environment, of JSON objects")
    return found


def tables_by_name(value: object) -> object:
    """Read a table of tables, or the JSON of one; rows that are parsed already stay. No message repeats the value."""
    found = _from_json(value)
    if not isinstance(found, Mapping) or any(map(_is_no_table, found.values())):
        raise ValueError("must hold a table for each name; in the environment, a JSON object")
    return found


def place(location: Iterable[int | str]) -> str:
    """Return the name of a place in tables: ``nodes[1].base_url``, ``models["gpt-4.1"].type``; indices are from 0."""
    first, *others = location
    return str(first) + "".join(map(_step, others))


def shown_tables(value: object, row: type) -> object:
    """Return tables as plain values, without secrets and without fields at their default.

    ``value`` may hold rows, or unparsed tables; anything else is redacted as a whole.
    """
    if isinstance(value, Mapping):
        return {key: _shown_row(item, row) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return tuple(_shown_row(item, row) for item in value)
    return REDACTED


def has_secret(value: object, row: type) -> bool:
    """Whether tables hold a secret; a value that is no table counts as one that does."""
    secrets = [column.name for column in columns(row) if column.secret]
    if isinstance(value, Mapping):
        items: Iterable[object] = value.values()
    elif isinstance(value, list | tuple):
        items = value
    else:
        return bool(secrets)
    return any(_fields(item).get(name) for item in items for name in secrets)


def _shown_row(item: object, row: type) -> object:
    fields = _fields(item)
    return {
        column.name: REDACTED if column.secret else _plain(fields[column.name])
        for column in columns(row)
        if column.name in fields and (column.required or fields[column.name] != column.default)
    }


def _fields(item: object) -> Mapping[str, object]:
    if isinstance(item, Mapping):
        return item
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
    return {}


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def _is_no_table(item: object) -> bool:
    return not isinstance(item, Mapping) and not dataclasses.is_dataclass(item)


def _step(part: int | str) -> str:
    if isinstance(part, int):
        return f"[{part}]"
    return f".{part}" if _BARE_KEY.fullmatch(part) else f"[{json.dumps(part, ensure_ascii=False)}]"


def _from_json(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        # The text may hold a key: the message names the place only.
        raise ValueError(f"is not JSON: {error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(found := dict(pairs)) != len(pairs):
        raise ValueError("a name occurs twice in one JSON object")
    return found
