"""Makes a JSON value that has the shape of a JSON Schema, the same one each time."""

import math
from typing import Any, Final

WORD: Final = "echo"
"""The value of every string that a schema leaves free; harmless even where a tool runs it as a command."""

_MAX_DEPTH = 24
_MAX_ITEMS = 64
_MAX_STRING = 4_096
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


def sample(schema: Any) -> Any:
    """Give a value for a schema. What is not understood of it is ignored; its patterns are not followed."""
    return _sample(schema, schema, 0)


def _sample(schema: Any, root: Any, depth: int) -> Any:
    if not isinstance(schema, dict) or depth > _MAX_DEPTH:
        return None if depth > _MAX_DEPTH else WORD
    if "const" in schema:
        return schema["const"]
    if isinstance(options := schema.get("enum"), list) and options:
        return options[0]
    if isinstance(reference := schema.get("$ref"), str):
        return _sample(_resolve(reference, root), root, depth + 1)
    for key in ("anyOf", "oneOf"):
        if isinstance(options := schema.get(key), list) and options:
            return _sample(_simplest(options, depth), root, depth + 1)
    if isinstance(parts := schema.get("allOf"), list) and parts:
        return _sample(_merge(schema, parts, root), root, depth + 1)
    return _of_kind(_kind(schema), schema, root, depth)


def _of_kind(kind: str, schema: dict[str, Any], root: Any, depth: int) -> Any:
    match kind:
        case "object":
            return _object(schema, root, depth)
        case "array":
            count = min(
                _whole(schema.get("minItems"), 0 if depth > _MAX_DEPTH // 2 else 1), _MAX_ITEMS
            )
            prefix = schema.get("prefixItems")
            if isinstance(prefix, list):
                return [_sample(item, root, depth + 1) for item in prefix[:_MAX_ITEMS]]
            return [_sample(schema.get("items", {}), root, depth + 1) for _ in range(count)]
        case "integer" | "number":
            return _number(schema, whole=kind == "integer")
        case "boolean":
            return True
        case "null":
            return None
        case _:
            return _string(schema)


def _kind(schema: dict[str, Any]) -> str:
    kind = schema.get("type")
    if isinstance(kind, list):
        kind = next((item for item in kind if item != "null"), "null")
    if isinstance(kind, str):
        return kind
    if "properties" in schema:
        return "object"
    return "array" if "items" in schema else "string"


def _object(schema: dict[str, Any], root: Any, depth: int) -> dict[str, Any]:
    properties = schema.get("properties")
    if not isinstance(properties, dict):
        return {}
    required = schema.get("required")
    wanted = properties
    if depth > _MAX_DEPTH // 2 and isinstance(required, list):
        # A type that contains itself ends here, as far as its required properties allow.
        wanted = {name: value for name, value in properties.items() if name in required}
    return {name: _sample(value, root, depth + 1) for name, value in wanted.items()}


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
    return (
        value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else default
    )


def _simplest(options: list[Any], depth: int) -> Any:
    """Take the first option that is not null; far down take null if there is one, so that recursion ends."""
    nulls = [
        option for option in options if isinstance(option, dict) and option.get("type") == "null"
    ]
    others = [option for option in options if option not in nulls]
    if nulls and (depth > _MAX_DEPTH // 2 or not others):
        return nulls[0]
    return others[0]


def _merge(schema: dict[str, Any], parts: list[Any], root: Any) -> dict[str, Any]:
    merged: dict[str, Any] = {key: value for key, value in schema.items() if key != "allOf"}
    properties: dict[str, Any] = dict(merged.get("properties") or {})
    for part in parts:
        if not isinstance(part, dict):
            continue
        reference = part.get("$ref")
        resolved = _resolve(reference, root) if isinstance(reference, str) else part
        if isinstance(resolved, dict):
            merged.update(resolved)
            properties.update(resolved.get("properties") or {})
    if properties:
        merged["properties"] = properties
    merged.pop("allOf", None)
    return merged


def _resolve(reference: str, root: Any) -> Any:
    if not reference.startswith("#"):
        return {}
    found = root
    for part in reference.lstrip("#/").split("/"):
        if part:
            name = part.replace("~1", "/").replace("~0", "~")
            found = found.get(name, {}) if isinstance(found, dict) else {}
    return found
