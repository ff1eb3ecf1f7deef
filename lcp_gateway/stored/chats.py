"""Stored chat completions as OpenAI lists them: their messages, and which of them a filter means."""

from collections.abc import Mapping
from typing import Any, Protocol


class Described(Protocol):
    """What is known of a stored chat completion without reading it."""

    @property
    def model(self) -> str:
        """The model it was asked of."""
        ...

    @property
    def bought_model(self) -> str:
        """The model that answered."""
        ...

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its client attached to it."""
        ...


def matches(chat: Described, *, model: str | None, metadata: Mapping[str, str]) -> bool:
    """Tell whether a chat completion is of a model (None: of any) and has all pairs of the metadata asked for.

    The model is the one that was asked for, which may be an alias, or the one that was bought.
    """
    if model not in {None, chat.model, chat.bought_model}:
        return False
    return all(chat.metadata.get(key) == value for key, value in metadata.items())


def message_object(message: object, completion_id: str, place: int) -> dict[str, Any]:
    """Give one message in the form that it is listed in: with an id of its own, and its parts beside its content."""
    if not isinstance(message, dict):
        return {"id": _own_id(completion_id, place), "role": None, "content": None}
    return message | _added(message, completion_id, place)


def _added(message: Mapping[str, Any], completion_id: str, place: int) -> dict[str, Any]:
    """Give the members that a message as it was sent lacks, or has in another form."""
    added: dict[str, Any] = {}
    given = message.get("id")
    if not isinstance(given, str) or not given:
        added["id"] = _own_id(completion_id, place)
    content = message.get("content")
    in_parts = isinstance(content, list)
    if in_parts or "content" not in message:
        added["content"] = None
    if "name" not in message:
        added["name"] = None
    return added | {"content_parts": content if in_parts else None}


def _own_id(completion_id: str, place: int) -> str:
    return f"{completion_id}-{place}"
