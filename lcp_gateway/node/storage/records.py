"""Purchases and sales as rows of the database, and back."""

import sqlite3
import struct
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, TypeVar

from lcp_gateway.encryption import DecryptionFailed, Encryption
from lcp_gateway.node.lcp.buying_events import KeepPurchase, Order
from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.lcp.messages import Error, Manifest, Message, Protocol, QuoteRequest, QuoteResponse, Result
from lcp_gateway.node.lcp.selling_events import KeepSale
from lcp_gateway.node.lcp.table import read_message, read_params, write_message, write_params
from lcp_gateway.node.lcp.tlv import WireError
from lcp_gateway.node.ports import StoredPurchase, StoredSale
from lcp_gateway.node.storage.files import RecordDamaged, StoreUnavailable

M = TypeVar("M")

_HEAD: Final = struct.Struct(">HI")
_INT64_MAX: Final = 2**63 - 1

Row = dict[str, Any]


def write_sent(messages: Iterable[Send]) -> bytes:
    """Return messages as bytes: the type, the length and the payload of each."""
    return b"".join(_HEAD.pack(one.message_type, len(one.payload)) + one.payload for one in messages)


def read_sent(data: bytes) -> list[Send]:
    """Return the messages of ``write_sent``.

    Raises:
        RecordDamaged: the bytes are cut off.
    """
    messages, at = [], 0
    try:
        while at < len(data):
            message_type, length = _HEAD.unpack_from(data, at)
            at += _HEAD.size
            if at + length > len(data):
                raise RecordDamaged("a kept message is cut off")
            messages.append(Send(message_type, data[at : at + length]))
            at += length
    except struct.error:
        raise RecordDamaged("a kept message is cut off") from None
    return messages


def write_kept(protocol: Protocol, message: Message) -> bytes:
    """Return a message of the protocol as bytes.

    Raises:
        StoreUnavailable: it has no form on the wire, as one whose version is 0.
    """
    try:
        return write_sent([Send(*write_message(protocol, message))])
    except WireError as error:
        raise StoreUnavailable(f"a message cannot be kept: {error}") from error


def read_kept(kind: type[M], data: bytes) -> M:
    """Return the message of ``write_kept``.

    Raises:
        RecordDamaged: the bytes are no such message.
    """
    try:
        (kept,) = read_sent(data)
        read = read_message(kept.message_type, kept.payload)
    except (ValueError, WireError):
        read = None
    if read is None or not isinstance(read[1], kind):
        raise RecordDamaged(f"no {kind.__name__} is where one was kept")
    return read[1]


def end_without_text(messages: Iterable[Send]) -> bytes | None:
    """Return the last message among these that ends a result, without its text, which may quote the result."""
    last = None
    for sent in messages:
        read = read_message(sent.message_type, sent.payload)
        if read is not None and isinstance(read[1], Result | Error):
            last = write_kept(read[0], replace(read[1], message=None))
    return last


@dataclass(frozen=True, slots=True)
class Records:
    """Writes rows and reads them. Without ``seals`` nothing sealed is written; without ``encryption`` nothing sealed is read.

    What belongs to one job is sealed under a ``name`` and a ``context``: neither can be exchanged for another's.
    """

    encryption: Encryption | None
    seals: bool

    def seal(self, name: bytes, context: bytes, content: bytes | None) -> bytes | None:
        """Return the ciphertext; None for no content, and where nothing is sealed."""
        if content is None or not self.seals or self.encryption is None:
            return None
        return self.encryption.encrypt(name, content, context)

    def unseal(self, name: bytes, context: bytes, ciphertext: bytes | None) -> bytes | None:
        """Return the content; None for no ciphertext.

        Raises:
            RecordDamaged: it was altered, or there is no key.
        """
        if ciphertext is None:
            return None
        if self.encryption is None:
            raise RecordDamaged("the key of kept requests is missing")
        try:
            return self.encryption.decrypt(name, ciphertext, context)
        except DecryptionFailed:
            raise RecordDamaged("a kept request or result was altered") from None

    def purchase_row(self, purchase: StoredPurchase, began_at: int) -> Row:
        """Return the row of a purchase."""
        order, quote, protocol = purchase.order, purchase.kept.quote, purchase.protocol
        model = _model_of(order.params)
        return {
            "job_id": quote.job_id,
            "peer_id": purchase.peer_id,
            "protocol": protocol.value,
            "task_kind": order.task_kind,
            "model": model,
            "sealed_params": self.seal(_purchase(quote.job_id), b"params", order.params) if model is None else None,
            "content_type": order.content_type,
            "params_content_type": order.params_content_type,
            "quote": write_kept(protocol, quote),
            "price_msat": min(quote.price_msat, _INT64_MAX),
            "quote_expiry": min(quote.quote_expiry, _INT64_MAX),
            "payment_hash": purchase.kept.payment_hash,
            "manifest": write_kept(protocol, purchase.manifest),
            "payer": purchase.payer,
            "began_at": began_at,
        }

    def read_purchase(self, row: sqlite3.Row) -> StoredPurchase:
        """Return the purchase of a row, without its request's bytes.

        Raises:
            RecordDamaged: the row is damaged, or there is no key.
        """
        if row["model"] is not None:
            params: bytes | None = write_params(row["model"])
        else:
            params = self.unseal(_purchase(row["job_id"]), b"params", row["sealed_params"])
        return StoredPurchase(
            peer_id=row["peer_id"],
            protocol=Protocol(row["protocol"]),
            order=Order(
                task_kind=row["task_kind"],
                params=params,
                request=b"",
                content_type=row["content_type"],
                params_content_type=row["params_content_type"],
            ),
            kept=KeepPurchase(read_kept(QuoteResponse, row["quote"]), row["payment_hash"]),
            manifest=read_kept(Manifest, row["manifest"]),
            payer=row["payer"],
        )

    def sale_row(self, sale: StoredSale, began_at: int) -> Row:
        """Return the row of a sale, without the messages of its result."""
        kept, protocol = sale.kept, sale.protocol
        name = sale_name(sale.peer_id, kept.request.job_id)
        return {
            "peer_id": sale.peer_id,
            "job_id": kept.request.job_id,
            "protocol": protocol.value,
            "request": write_kept(protocol, kept.request),
            "model": kept.model,
            "stream": kept.stream,
            "quote": write_kept(protocol, kept.quote),
            "price_msat": min(kept.quote.price_msat, _INT64_MAX),
            "quote_expiry": min(kept.quote.quote_expiry, _INT64_MAX),
            "payment_hash": kept.payment_hash,
            "sealed_body": self.seal(name, b"body", kept.body),
            "sealed_preimage": self.seal(name, b"preimage", sale.hold_preimage),
            "last": None,
            "began_at": began_at,
            "ended_at": None,
            "has_line": False,
        }

    def read_sale(self, row: sqlite3.Row, sealed_sent: Iterable[tuple[int, bytes]]) -> StoredSale:
        """Return the sale of a row and of the messages (position, ciphertext) of its result.

        Raises:
            RecordDamaged: the row is damaged, or there is no key.
        """
        name = sale_name(row["peer_id"], row["job_id"])
        sent = [
            message
            for position, ciphertext in sealed_sent
            for message in read_sent(self.unseal(name, sent_context(position), ciphertext) or b"")
        ]
        if row["last"] is not None:
            sent += read_sent(row["last"])
        return StoredSale(
            peer_id=row["peer_id"],
            protocol=Protocol(row["protocol"]),
            kept=KeepSale(
                request=read_kept(QuoteRequest, row["request"]),
                model=row["model"],
                body=self.unseal(name, b"body", row["sealed_body"]) or b"",
                stream=bool(row["stream"]),
                quote=read_kept(QuoteResponse, row["quote"]),
                payment_hash=row["payment_hash"],
            ),
            sent=tuple(sent),
            hold_preimage=self.unseal(name, b"preimage", row["sealed_preimage"]),
        )


def sale_name(peer_id: str, job_id: bytes) -> bytes:
    """Return the name under which a sale is sealed."""
    return b"sale " + peer_id.encode() + job_id


def sent_context(position: int) -> bytes:
    """Return the context of messages of a result: their place in it."""
    return b"sent" + position.to_bytes(8, "big")


def _purchase(job_id: bytes) -> bytes:
    return b"purchase " + job_id


def _model_of(params: bytes | None) -> str | None:
    """Return the model of params that name one and nothing else; None for all others."""
    if params is None:
        return None
    try:
        model, unknown = read_params(params)
    except WireError:
        return None
    return None if unknown else model
