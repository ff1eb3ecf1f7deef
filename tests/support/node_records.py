"""Purchases, sales and results as a node keeps them, made of a number."""

import hashlib

from lcp_gateway.node.lcp.buying_events import KeepPurchase, Order
from lcp_gateway.node.lcp.effects import Send
from lcp_gateway.node.lcp.messages import (
    CHAT,
    IDENTITY,
    JSON,
    SSE,
    Error,
    Manifest,
    Protocol,
    QuoteRequest,
    QuoteResponse,
    Result,
    Status,
    StreamBegin,
    StreamChunk,
    StreamKind,
    TaskTemplate,
)
from lcp_gateway.node.lcp.selling_events import KeepSale
from lcp_gateway.node.lcp.table import chunk_msg_id, write_message, write_params
from lcp_gateway.node.ports import StoredPurchase, StoredSale

PROMPT = b"tell no one that the harbour is empty"
ANSWER = b"the lighthouse keeper already knows"
PREIMAGE = b"preimage of a held invoice, 32 b"


def number32(kind: str, number: int) -> bytes:
    """32 bytes that are always the same for a number."""
    return hashlib.sha256(f"{kind} {number}".encode()).digest()


def peer(number: int) -> str:
    return f"02{number32('peer', number).hex()}"


def manifest(number: int = 0, protocol: Protocol = Protocol.V02) -> Manifest:
    params = write_params(f"model-{number}") if protocol is Protocol.V02 else None
    return Manifest(
        protocol_version=protocol.value,
        max_payload_bytes=16_384 + number,
        max_stream_bytes=4_000_000,
        max_job_bytes=8_000_000,
        tasks=(TaskTemplate(task_kind=CHAT, params=params),),
    )


def quote(number: int, protocol: Protocol = Protocol.V02, price_msat: int = 1_000) -> QuoteResponse:
    return QuoteResponse(
        protocol_version=protocol.value,
        job_id=number32("job", number),
        msg_id=number32("quote", number),
        expiry=2_000,
        price_msat=price_msat,
        quote_expiry=2_000,
        terms_hash=number32("terms", number),
        payment_request=f"lnbcrt{number}",
    )


def purchase(number: int, *, protocol: Protocol = Protocol.V02, **order) -> StoredPurchase:
    order = {"params": write_params("model-a"), "request": PROMPT, **order}
    return StoredPurchase(
        peer_id=peer(number),
        protocol=protocol,
        order=Order(task_kind=CHAT, **order),
        kept=KeepPurchase(quote(number, protocol), number32("hash", number)),
        manifest=manifest(number, protocol),
        payer=peer(number + 1),
    )


def sale(number: int, *, protocol: Protocol = Protocol.V02, body: bytes = PROMPT, **fields) -> StoredSale:
    request = QuoteRequest(
        protocol_version=protocol.value,
        job_id=number32("job", number),
        msg_id=number32("request", number),
        expiry=2_000,
        task_kind=CHAT,
        params=write_params("model-a"),
    )
    return StoredSale(
        peer_id=peer(number),
        protocol=protocol,
        kept=KeepSale(
            request=request,
            model="model-a",
            body=body,
            stream=bool(number % 2),
            quote=quote(number, protocol),
            payment_hash=number32("hash", number),
        ),
        **fields,
    )


def _envelope(number: int, protocol: Protocol, what: str) -> dict:
    return {
        "protocol_version": protocol.value,
        "job_id": number32("job", number),
        "msg_id": number32(what, number),
        "expiry": 2_000,
    }


def piece(number: int, seq: int = 0, *, data: bytes = ANSWER, protocol: Protocol = Protocol.V02) -> Send:
    """A part of the result of a sale: its begin is 0, chunks follow."""
    stream_id = number32("stream", number)
    if not seq:
        begin = StreamBegin(
            **_envelope(number, protocol, "begin"),
            stream_id=stream_id,
            stream_kind=StreamKind.RESULT,
            content_type=SSE,
            content_encoding=IDENTITY,
        )
        return Send(*write_message(protocol, begin))
    envelope = {**_envelope(number, protocol, ""), "msg_id": chunk_msg_id(stream_id, seq)}
    return Send(*write_message(protocol, StreamChunk(**envelope, stream_id=stream_id, seq=seq, data=data)))


def end(number: int, protocol: Protocol = Protocol.V02) -> Send:
    """The last message of a result that is whole."""
    result = Result(
        **_envelope(number, protocol, "result"),
        status=Status.OK,
        stream_id=number32("stream", number),
        sha256=number32("result", number),
        total_len=10,
        content_type=JSON,
        content_encoding=IDENTITY,
    )
    return Send(*write_message(protocol, result))


def failure(number: int, text: str | None, protocol: Protocol = Protocol.V02) -> Send:
    """The last message of a result that failed."""
    return Send(*write_message(protocol, Error(**_envelope(number, protocol, "error"), code=7, message=text)))
