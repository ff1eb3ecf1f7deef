"""Makes a JSON value that has the shape of a JSON Schema, the same one each time."""

import math
from typing import Any, Final

import orjson

WORD: Final = "echo"
"""The value of every string that a schema leaves free; harmless even where a tool runs it as a command."""

_MAX_DEPTH = 24
_MAX_ITEMS = 64
_MAX_STRING = 4_096
_MAX_VALUES = 2_000
_FORMATS = {
    "date-time": "2024-01-01T00:00:00Z",
    "date": "2024-01-01",
    "time": "00:00:00Z",
    "duration": "PT1S",
    "email": "echo@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "uri": "https://example.com/",
}


def sample_json(schema: Any) -> Any:
    """Return a value for a schema. Keywords that are not known are ignored, and so are patterns."""
    return _Sampler(schema).value(schema, 0)


class _Sampler:
    """Makes one value; counts its parts, since a short schema can ask for more than any memory holds."""

    def __init__(self, root: Any) -> None:
        self._root = root
        self._left = _MAX_VALUES

    def value(self, schema: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _MAX_DEPTH:
            return None
        if not isinstance(schema, dict):
            return WORD
        if "const" in schema:
            return self._given(schema["const"])
        if isinstance(options := schema.get("enum"), list) and options:
            return self._given(options[0])
        if isinstance(reference := schema.get("$ref"), str):
            return self.value(_resolve(reference, self._root), depth + 1)
        for key in ("anyOf", "oneOf"):
            if isinstance(options := schema.get(key), list) and options:
                return self.value(_simplest(options, depth), depth + 1)
        if isinstance(parts := schema.get("allOf"), list) and parts:
            merged = _merge(schema, parts, self._root)
            self._left -= len(_properties(merged)) // 16
            return self.value(merged, depth + 1)
        return self._of_kind(_kind(schema), schema, depth)

    def _given(self, value: Any) -> Any:
        """Take a value that the schema itself holds; a large one counts for as many as it could have been."""
        self._left -= len(orjson.dumps(value)) // 64
        return value if self._left >= 0 else None

    def _of_kind(self, kind: str, schema: dict[str, Any], depth: int) -> Any:
        match kind:
            case "object":
                return self._object(schema, depth)
            case "array":
                return self._array(schema, depth)
            case "integer" | "number":
                return _number(schema, whole=kind == "integer")
            case "boolean":
                return True
            case "null":
                return None
            case _:
                return _string(schema)

    def _array(self, schema: dict[str, Any], depth: int) -> list[Any]:
        prefix = schema.get("prefixItems")
        if isinstance(prefix, list):
            return [self.value(item, depth + 1) for item in prefix[:_MAX_ITEMS]]
        # A type that contains itself ends where no keyword demands another item.
        count = _whole(schema.get("minItems"), 0 if depth > _MAX_DEPTH // 2 else 1)
        items = schema.get("items", {})
        made: list[Any] = []
        while len(made) < min(count, _MAX_ITEMS) and self._left > 0:
            made.append(self.value(items, depth + 1))
        return made

    def _object(self, schema: dict[str, Any], depth: int) -> dict[str, Any]:
        properties = _properties(schema)
        required = schema.get("required")
        wanted = properties
        if depth > _MAX_DEPTH // 2 and isinstance(required, list):
            names = {name for name in required if isinstance(name, str)}
            wanted = {name: value for name, value in properties.items() if name in names}
        return {name: self.value(value, depth + 1) for name, value in wanted.items() if self._left > 0}


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _string(schema: dict[str, Any]) -> str:
    shape = schema.get("format")
    if isinstance(shape, str) and shape in _FORMATS:
        return _FORMATS[shape]
    least = min(_whole(schema.get("minLength"), 0), _MAX_STRING)
    most = _whole(schema.get("maxLength"), _MAX_STRING)
    return (WORD * (least // len(WORD) + 1))[: max(least, min(len(WORD), most))]


def _number(schema: dict[str, Any], *, whole: bool) -> float:
    value: float = 1
    for key, step in (("minimum", 0), ("exclusiveMinimum", 1)):
        value = max(value, _bound(schema.get(key), value - step) + step)
    for key, step in (("maximum", 0), ("exclusiveMaximum", 1)):
        value = min(value, _bound(schema.get(key), value + step) - step)
    return math.ceil(value) if whole else value


def _bound(value: Any, default: float) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else default


def _whole(value: Any, default: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default


def _simplest(options: list[Any], depth: int) -> Any:
    """Take the first option that is not null; far down take null if there is one, so that recursion ends."""
    null = None
    other = None
    for option in options:
        if isinstance(option, dict) and option.get("type") == "null":
            null = option
        elif other is None:
            other = option
    return null if null is not None and (other is None or depth > _MAX_DEPTH // 2) else other


def _merge(schema: dict[str, Any], parts: list[Any], root: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    properties: dict[str, Any] = dict(_properties(merged))
    for part in parts:
        if not isinstance(part, dict):
            continue
        reference = part.get("$ref")
        resolved = _resolve(reference, root) if isinstance(reference, str) else part
        if isinstance(resolved, dict):
            merged.update(resolved)
            properties.update(_properties(resolved))
    if properties:
        merged["properties"] = properties
    merged.pop("allOf", None)
    return merged


def _properties(schema: dict[str, Any]) -> dict[str, Any]:
    properties = schema.get("properties")
    return properties if isinstance(properties, dict) else {}


def _resolve(reference: str, root: Any) -> Any:
    if not reference.startswith("#"):
        return {}
    found = root
    for part in reference.lstrip("#/").split("/"):
        if part:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name, {}) if isinstance(found, dict) else {}
    return found
