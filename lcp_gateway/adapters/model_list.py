"""A server's list of models, in any of the forms that servers write."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_MAX_MODELS = 10_000
_MAX_ID_CHARS = 256
_MAX_COUNT = 2**53
_CONTEXT_LENGTHS = ("context_length", "max_model_len", "max_context_length", "context_window")
_PARAMETER_CAPABILITIES = {"tools": "tools", "response_format": "json_schema", "structured_outputs": "json_schema"}


class BadModelList(ValueError):
    """It is no list of models."""


@dataclass(frozen=True, slots=True)
class ListedModel:
    """One model of a list; 0 and empty where the list does not say. ``created`` is Unix seconds."""

    id: str
    owned_by: str = ""
    created: int = 0
    context_length: int = 0
    capabilities: frozenset[str] = frozenset()


def read_model_list(body: bytes) -> tuple[ListedModel, ...]:
    """Return the models of an answer to ``GET /models``; those without a usable name are left out.

    Raises:
        BadModelList: it is no list.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise BadModelList("the list of models is not JSON") from None
    entries = document
    if isinstance(document, dict):
        entries = next((document[key] for key in ("data", "models") if key in document), None)
    if entries is None:
        # Ollama without a model.
        entries = []
    if not isinstance(entries, list):
        raise BadModelList("the list of models is no list")
    listed = (_listed_model(entry) for entry in entries[:_MAX_MODELS])
    return tuple(model for model in listed if model is not None)


def _listed_model(entry: object) -> ListedModel | None:
    if isinstance(entry, str):
        entry = {"id": entry}
    if not isinstance(entry, dict):
        return None
    names = (entry.get(key) for key in ("id", "name", "model"))
    model_id = next((name for name in names if isinstance(name, str)), "")
    if not _is_usable(model_id):
        return None
    owner = entry.get("owned_by")
    return ListedModel(
        id=model_id,
        owned_by=owner if isinstance(owner, str) and _is_usable(owner) else "",
        created=_count(entry.get("created")),
        context_length=next((n for key in _CONTEXT_LENGTHS if (n := _count(entry.get(key)))), 0),
        capabilities=_capabilities(entry),
    )


def _capabilities(entry: Mapping[str, Any]) -> frozenset[str]:
    found: set[str] = set()
    parameters = entry.get("supported_parameters")
    if isinstance(parameters, list):
        found.update(word for name, word in _PARAMETER_CAPABILITIES.items() if name in parameters)
    architecture = entry.get("architecture")
    if isinstance(architecture, dict):
        modalities = architecture.get("input_modalities")
        if isinstance(modalities, list) and "image" in modalities:
            found.add("vision")
    return frozenset(found)


def _is_usable(text: str) -> bool:
    """Return whether a client can name it: a request's model is printable, without white space at its ends."""
    return 0 < len(text) <= _MAX_ID_CHARS and text.isprintable() and text == text.strip()


def _count(value: object) -> int:
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < _MAX_COUNT:
        return value
    return 0
