"""The options of a request that the gateway itself serves: store, chain, background, metadata."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lcp_gateway.purchase.order import TaskKind

_MAX_ID_CHARS = 256
# OpenAI's limits.
_MAX_PAIRS = 16
_MAX_KEY_CHARS = 64
_MAX_VALUE_CHARS = 512


class InvalidOption(Exception):
    """An option has a wrong type or value, or contradicts another; ``param`` names the field."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """The options of a request. ``stores_explicitly`` says that the client asked for storing, and not by default."""

    store: bool = False
    stores_explicitly: bool = False
    background: bool = False
    previous_response_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict, repr=False)


NO_OPTIONS = RequestOptions()


def read_options(kind: TaskKind, document: Mapping[str, Any]) -> RequestOptions:
    """Read the options. As with OpenAI a response is stored by default, a chat completion with ``store: true`` only.

    Raises:
        InvalidOption: a field is of the wrong type, or two contradict one another.
    """
    match kind:
        case TaskKind.RESPONSES:
            return _of_response(document)
        case TaskKind.CHAT_COMPLETIONS:
            if _switch(document, "store"):
                return RequestOptions(store=True, stores_explicitly=True, metadata=read_metadata(document))
            return NO_OPTIONS
        case _:
            return NO_OPTIONS


def read_metadata(document: Mapping[str, Any]) -> Mapping[str, str]:
    """Read the pairs that a client attaches to a stored object.

    Raises:
        InvalidOption: OpenAI would refuse them.
    """
    metadata = document.get("metadata")
    if metadata is None:
        return {}
    if not isinstance(metadata, dict):
        raise InvalidOption("metadata must be an object", "metadata", "invalid_type")
    if len(metadata) > _MAX_PAIRS:
        raise InvalidOption(f"metadata must have at most {_MAX_PAIRS} keys", "metadata")
    for key, value in metadata.items():
        if not isinstance(value, str):
            raise InvalidOption("the values of metadata must be strings", "metadata", "invalid_type")
        if len(key) > _MAX_KEY_CHARS or len(value) > _MAX_VALUE_CHARS:
            raise InvalidOption(
                f"a key of metadata has at most {_MAX_KEY_CHARS} characters, a value {_MAX_VALUE_CHARS}", "metadata"
            )
    return metadata


def _of_response(document: Mapping[str, Any]) -> RequestOptions:
    store = _switch(document, "store")
    background = _switch(document, "background") is True
    if background and store is False:
        raise InvalidOption("background needs store to be true", "background")
    previous = document.get("previous_response_id")
    if previous is not None:
        if not isinstance(previous, str):
            raise InvalidOption("previous_response_id must be a string", "previous_response_id", "invalid_type")
        if not previous or len(previous) > _MAX_ID_CHARS:
            raise InvalidOption(
                f"previous_response_id must have 1 to {_MAX_ID_CHARS} characters", "previous_response_id"
            )
        if document.get("conversation") is not None:
            raise InvalidOption("previous_response_id and conversation cannot be used together", "previous_response_id")
    if document.get("conversation") is not None:
        raise InvalidOption(
            "conversation is not supported: neither this gateway nor its providers keep conversations, so the earlier turns "
            "would be missing; send them as input, or name the last response in previous_response_id",
            "conversation",
            "unsupported_parameter",
        )
    return RequestOptions(
        store=store is not False,
        stores_explicitly=store is True or background or previous is not None,
        background=background,
        previous_response_id=previous,
    )


def _switch(document: Mapping[str, Any], name: str) -> bool | None:
    value = document.get(name)
    if value is not None and not isinstance(value, bool):
        raise InvalidOption(f"{name} must be true or false", name, "invalid_type")
    return value
