"""What is stored: a response or a chat completion, as the bytes that its provider sent, and what led to it."""

import enum
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from lcp_gateway.adapters.json_bytes import dump_json
from lcp_gateway.responses.documents import chat_document, response_document, response_output
from lcp_gateway.responses.replay import with_changes

_NOTHING = b"{}"


class ItemKind(enum.StrEnum):
    """The two families of stored things."""

    RESPONSE = "response"
    CHAT = "chat"


@dataclass(frozen=True, slots=True)
class Item:
    """One stored result.

    ``blocks`` are the result's bytes, a stream's events where ``stream`` says so. ``inputs`` are the segments of all input
    items that led to it, the earlier turns' among them; for a chat the one of its messages. ``model`` is what was asked for,
    ``bought_model`` what answered. ``changes`` are members of the
    document that the gateway answers for, as its id where that is not the provider's own. ``attached`` is the client's
    metadata as JSON, which can be long and so is held as what is counted. ``opening`` is the event that its client got before those of the provider. Times are seconds since 1970.
    """

    kind: ItemKind
    id: str
    created_at: int
    model: str
    blocks: tuple[bytes, ...] = field(repr=False)
    stream: bool
    bought_model: str = ""
    opening: bytes = field(default=b"", repr=False)
    inputs: tuple[bytes, ...] = field(default=(), repr=False)
    changes: Mapping[str, object] = field(default_factory=dict, repr=False)
    attached: bytes = field(default=_NOTHING, repr=False)
    background: bool = False
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def segments(self) -> Iterator[bytes]:
        """Give the byte strings that it holds on to; those of a conversation's earlier turns are shared."""
        yield from self.inputs
        yield from self.blocks
        if self.opening:
            yield self.opening
        if self.attached != _NOTHING:
            yield self.attached

    @property
    def metadata(self) -> Mapping[str, str]:
        """What its client attached to it."""
        found: Mapping[str, str] = json.loads(self.attached)
        return found

    def document(self) -> bytes:
        """Give it as one JSON object.

        Raises:
            ValueError: what its provider sent cannot be read.
        """
        if self.kind is ItemKind.CHAT:
            document = chat_document(self.blocks, self.stream)
            return with_changes(document, {**self.changes, "metadata": self.metadata})
        return with_changes(response_document(self.blocks, self.stream), self.changes)

    def context(self) -> tuple[bytes, ...]:
        """Give the segments of everything that was said so far, for a next turn.

        Raises:
            ValueError: what its provider sent cannot be read.
        """
        output = response_output(response_document(self.blocks, self.stream))
        return (*self.inputs, output) if output else self.inputs

    def with_metadata(self, metadata: Mapping[str, str]) -> "Item":
        """Give it with other metadata."""
        return replace(self, attached=metadata_text(metadata))


def metadata_text(metadata: Mapping[str, str]) -> bytes:
    """Write metadata as an item holds it."""
    return dump_json(dict(metadata)) if metadata else _NOTHING
