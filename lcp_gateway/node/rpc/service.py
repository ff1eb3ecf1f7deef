"""LCPDService from bytes to bytes: the six calls of lcpd-grpcd and our own over ``NodeCalls``, for gRPC and for a client in the same process."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from types import MappingProxyType
from typing import Final

from lcp_gateway._gen.lcpd import extensions_pb2
from lcp_gateway.node.lcp.buying_events import Outcome, ResultData, ResultHead
from lcp_gateway.node.lcp.messages import Protocol
from lcp_gateway.node.rpc.dialect import ID_BYTES, JobCall, invalid, parse
from lcp_gateway.node.rpc.reports import FEE_LIMIT, MAX_PRICE, report_message
from lcp_gateway.node.rpc.v02 import DialectV02
from lcp_gateway.node.rpc.v03 import DialectV03
from lcp_gateway.node.runtime.calls import Delivered, NodeCalls, Paid, PaymentReport, PurchaseItem

SERVICE: Final = "/lcpd.v1.LCPDService/"
"""The path before a method's name, in both versions."""
GET_PAYMENT: Final = "/lcpgateway.v1.NodeService/GetPayment"
"""The path of the call that lcpd-grpcd does not have."""
Metadata = Iterable[tuple[str, str | bytes]]

_MAX_MSAT_DIGITS: Final = 18


class RpcService:
    """The calls of one version. Every call raises ``CallFailed`` with its status."""

    def __init__(self, calls: NodeCalls, protocol: Protocol) -> None:
        self._calls = calls
        self._dialect: DialectV02 | DialectV03 = DialectV02() if protocol is Protocol.V02 else DialectV03()
        self.unary: Final[Mapping[str, Callable[[bytes, Metadata], Awaitable[bytes]]]] = MappingProxyType(
            {
                SERVICE + "ListLCPPeers": self._list_peers,
                SERVICE + "GetLocalInfo": self._local_info,
                SERVICE + "RequestQuote": self._request_quote,
                SERVICE + "AcceptAndExecute": self._execute,
                SERVICE + "CancelJob": self._cancel,
                GET_PAYMENT: self._get_payment,
            }
        )
        """The calls that have one answer, by path."""
        self.streams: Final[Mapping[str, Callable[[bytes, Metadata], AsyncGenerator[bytes, None]]]] = MappingProxyType(
            {SERVICE + "AcceptAndExecuteStream": self._execute_stream}
        )
        """The calls that have many answers, by path. Closing the generator says that the caller is gone."""

    async def _list_peers(self, _request: bytes, _metadata: Metadata) -> bytes:
        return self._dialect.write_peers(self._calls.ready_peers(self._dialect.protocol))

    async def _local_info(self, _request: bytes, _metadata: Metadata) -> bytes:
        return self._dialect.write_info(await self._calls.local_info(self._dialect.protocol))

    async def _request_quote(self, request: bytes, _metadata: Metadata) -> bytes:
        call = self._dialect.read_quote_request(request)
        quote = await self._calls.request_quote(self._dialect.protocol, call.peer_id, call.order)
        return self._dialect.write_quote(call.peer_id, quote)

    async def _cancel(self, request: bytes, _metadata: Metadata) -> bytes:
        call = self._dialect.read_cancel(request)
        self._calls.cancel(call.peer_id, call.job_id, call.reason)
        return self._dialect.write_cancelled()

    async def _get_payment(self, request: bytes, _metadata: Metadata) -> bytes:
        message = parse(extensions_pb2.GetPaymentRequest, request)
        for name, value in (("job_id", message.job_id), ("payment_hash", message.payment_hash)):
            if len(value) != ID_BYTES:
                raise invalid(name, f"value length must be {ID_BYTES} bytes")
        return report_message(await self._calls.payment(message.job_id, message.payment_hash)).SerializeToString()

    async def _execute(self, request: bytes, metadata: Metadata) -> bytes:
        parts: list[bytes] = []
        async with aclosing(self._accept(self._dialect.read_accept(request), metadata)) as items:
            async for item in items:
                match item:
                    case ResultData(data):
                        parts.append(data)
                    case Delivered():
                        is_ok = item.ended.outcome is Outcome.DELIVERED
                        return self._dialect.write_whole(item, b"".join(parts) if is_ok else b"")
                    case _:
                        pass
        # Only calls that simulate a faulty daemon end so: a message without a result.
        return b""

    async def _execute_stream(self, request: bytes, metadata: Metadata) -> AsyncGenerator[bytes, None]:
        dialect = self._dialect
        payment: PaymentReport | None = None
        async with aclosing(self._accept(dialect.read_accept(request), metadata)) as items:
            # The next item is asked for when the transport has taken this one: a slow caller stops its own job only.
            async for item in items:
                match item:
                    case Paid():
                        payment = item.payment
                    case ResultHead(content_type, content_encoding):
                        yield dialect.write_begin(content_type, content_encoding, payment)
                    case ResultData(data):
                        yield dialect.write_chunk(data)
                    case Delivered(result=result):
                        if item.ended.outcome is Outcome.DELIVERED and result is not None:
                            yield dialect.write_end(result.sha256 or b"", result.total_len or 0)
                        yield dialect.write_result(item)

    def _accept(self, job: JobCall, metadata: Metadata) -> AsyncGenerator[PurchaseItem, None]:
        limits = _limits(metadata)
        return self._calls.accept(
            job.peer_id, job.job_id, max_price_msat=limits.get(MAX_PRICE), fee_limit_msat=limits.get(FEE_LIMIT)
        )


def _limits(metadata: Metadata) -> dict[str, int]:
    """Return the caller's limits, in msat; of a name that comes twice the lower one holds.

    Raises:
        CallFailed: one is no number.
    """
    found: dict[str, int] = {}
    for name, text in metadata:
        if name not in {MAX_PRICE, FEE_LIMIT}:
            continue
        if not isinstance(text, str) or not (text.isascii() and text.isdigit() and len(text) <= _MAX_MSAT_DIGITS):
            raise invalid(name, "value is no amount in msat")
        found[name] = min(int(text), found.get(name, int(text)))
    return found
