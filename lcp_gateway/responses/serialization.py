"""A stored item as a head and segments and back, for a store outside of this process."""

from collections.abc import Sequence
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json, parse_json
from lcp_gateway.responses.items import Item, ItemKind


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
