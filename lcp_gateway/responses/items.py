"""A stored response or chat completion: the bytes that its provider sent, and the input that led to it.

For a store outside of this process an item is a head and segments.
"""

import enum
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json, parse_json, with_changes
from lcp_gateway.responses.documents import chat_document, response_document, response_output

_NO_METADATA = b"{}"


class ItemKind(enum.StrEnum):
    """The kinds of stored objects."""

    RESPONSE = "response"
    CHAT = "chat"
    JOB = "job"
    """A background response that runs, as other processes see it; its result takes the place of this."""


@dataclass(frozen=True, slots=True)
class Item:
    """One stored result. Times are seconds since 1970.

    ``blocks`` are the result's bytes, a stream's events if ``stream`` is set. ``inputs`` are the segments of all input items
    that led to it, those of earlier turns included; for a chat the one of its messages. ``model`` was requested,
    ``bought_model`` answered. ``changes`` are members of the document that the gateway sets, such as an id of its own.
    ``attached`` is the client's metadata as JSON, which can be long and so counts as bytes. ``opening`` is the event
    that the client got before those of the provider.
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
    attached: bytes = field(default=_NO_METADATA, repr=False)
    background: bool = False
    headers: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}), repr=False)

    def segments(self) -> Iterator[bytes]:
        """Yield the byte strings that the item references; those of a conversation's earlier turns are shared."""
        yield from self.inputs
        yield from self.blocks
        if self.opening:
            yield self.opening
        if self.attached != _NO_METADATA:
            yield self.attached

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata that its client attached."""
        found: Mapping[str, str] = json.loads(self.attached)
        return found

    def matches(self, *, model: str | None, metadata: Mapping[str, str]) -> bool:
        """Return whether it is of a model (None: of any) and has all pairs of ``metadata``.

        The model may be the one that was asked for, such as an alias, or the one that was bought.
        """
        if model not in {None, self.model, self.bought_model}:
            return False
        return self.metadata.items() >= metadata.items()

    def document(self) -> bytes:
        """Return it as one JSON object.

        Raises:
            ValueError: the provider's bytes cannot be read.
        """
        if self.kind is ItemKind.CHAT:
            document = chat_document(self.blocks, self.stream)
            return with_changes(document, {**self.changes, "metadata": self.metadata})
        return with_changes(response_document(self.blocks, self.stream), self.changes)

    def context(self) -> tuple[bytes, ...]:
        """Return the segments of the whole conversation so far, for a next turn.

        Raises:
            ValueError: the provider's bytes cannot be read.
        """
        output = response_output(response_document(self.blocks, self.stream))
        return (*self.inputs, output) if output else self.inputs

    def with_metadata(self, metadata: Mapping[str, str]) -> "Item":
        """Return a copy with other metadata."""
        return replace(self, attached=metadata_text(metadata))


def metadata_text(metadata: Mapping[str, str]) -> bytes:
    """Return metadata as an item holds it."""
    return dump_json(dict(metadata)) if metadata else _NO_METADATA


def item_parts(item: Item) -> tuple[bytes, Sequence[bytes]]:
    """Return the head of an item, and the byte strings that it has besides: its inputs first, which it may share with others."""
    head = {
        "kind": item.kind.value,
        "id": item.id,
        "created_at": item.created_at,
        "model": item.model,
        "bought_model": item.bought_model,
        "stream": item.stream,
        "changes": dict(item.changes),
        "attached": item.attached.decode(),
        "background": item.background,
        "headers": dict(item.headers),
        "inputs": len(item.inputs),
        "blocks": len(item.blocks),
    }
    return dump_json(head), (*item.inputs, *item.blocks, item.opening)


def item_of(head: bytes, segments: Sequence[bytes] | None) -> Item:
    """Return the item that ``item_parts`` wrote; without its bytes where ``segments`` is None."""
    facts: Any = parse_json(head)
    inputs = facts["inputs"]
    parts = () if segments is None else tuple(segments)
    return Item(
        kind=ItemKind(facts["kind"]),
        id=facts["id"],
        created_at=facts["created_at"],
        model=facts["model"],
        bought_model=facts["bought_model"],
        stream=facts["stream"],
        changes=facts["changes"],
        attached=facts["attached"].encode(),
        background=facts["background"],
        headers=facts["headers"],
        inputs=parts[:inputs],
        blocks=parts[inputs : inputs + facts["blocks"]],
        opening=parts[-1] if parts else b"",
    )
