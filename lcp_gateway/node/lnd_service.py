"""A few calls of lnd's own services, simulated, so that top-ups can be paid at the node, and withdrawals by it.

Their messages come with an optional extra and are loaded at the first call; a node without them serves all other calls.
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import MappingProxyType
from typing import Any, Final

import grpc
from google.protobuf.message import DecodeError

from lcp_gateway.__about__ import __version__
from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.lightning.lnd.stubs import LndNotInstalled, Stubs, load_stubs
from lcp_gateway.node.invoices import CallError, Invoice, InvoiceBook, lnd_refusal
from lcp_gateway.node.payments import SUCCEEDED, Payment, Payments
from lcp_gateway.node.peers import Peers
from lcp_gateway.node.wallets import CustomerPaymentFailed, CustomerWallet, Wallet

Context = grpc.aio.ServicerContext[bytes, bytes]

_SERVICE: Final = "/lnrpc.Lightning/"
_ROUTER: Final = "/routerrpc.Router/"
DEMO_INVOICE: Final = "/lcpgateway.Demo/AddInvoice"
"""Adds an invoice of the demonstration's customer; its messages are those of lnd's AddInvoice. No lnd has this call."""
_HASH_BYTES: Final = 32
_NO_PREIMAGE: Final = "00" * _HASH_BYTES
_DEFAULT_PAGE: Final = 100
_NETWORKS: Final = MappingProxyType(
    {"bc": "mainnet", "tb": "testnet", "tbs": "signet", "bcrt": "regtest", "sb": "simnet"}
)

# Numbers of lnrpc.Invoice.InvoiceState.
_OPEN = 0
_SETTLED = 1
_CANCELED = 2


class LndService:
    """The calls themselves, from message to message; ``messages`` is the generated module, which has no types."""

    def __init__(
        self,
        network: str,
        *,
        book: InvoiceBook,
        customer: CustomerWallet,
        wallet: Wallet,
        payments: Payments,
        peers: Peers,
    ) -> None:
        self._network = network
        self._book = book
        self._customer = customer
        self._wallet = wallet
        self._payments = payments
        self._peers = peers

    async def get_info(self, messages: Any, _request: Any) -> Any:
        """Return the identity: the same node that pays for jobs."""
        return messages.GetInfoResponse(
            identity_pubkey=self._book.node_id,
            alias="lcp-gateway node",
            version=f"lcp-gateway {__version__}, simulated",
            chains=[messages.Chain(chain="bitcoin", network=_NETWORKS.get(self._network, ""))],
            synced_to_chain=True,
            synced_to_graph=True,
            num_peers=sum(peer.ready for peer in self._peers),
            num_active_channels=1,
        )

    async def channel_balance(self, messages: Any, _request: Any) -> Any:
        """Return the node's balance, and as the remote one its customer's."""
        ours, theirs = self._wallet.balance_msat, self._customer.balance_msat
        return messages.ChannelBalanceResponse(
            balance=ours // MSAT_PER_SAT,
            local_balance=messages.Amount(sat=ours // MSAT_PER_SAT, msat=ours),
            remote_balance=messages.Amount(sat=theirs // MSAT_PER_SAT, msat=theirs),
        )

    async def list_channels(self, messages: Any, _request: Any) -> Any:
        """Return the one channel that stands for all."""
        ours, theirs = self._wallet.balance_msat, self._customer.balance_msat
        return messages.ListChannelsResponse(
            channels=[
                messages.Channel(
                    active=True,
                    capacity=(ours + theirs) // MSAT_PER_SAT,
                    local_balance=ours // MSAT_PER_SAT,
                    remote_balance=theirs // MSAT_PER_SAT,
                )
            ]
        )

    async def wallet_balance(self, messages: Any, _request: Any) -> Any:
        """Return the balance on chain, which is 0."""
        return messages.WalletBalanceResponse()

    async def add_invoice(self, messages: Any, request: Any) -> Any:
        """Add an invoice of the node."""
        return _add_invoice(self._book, messages, request)

    async def add_customer_invoice(self, messages: Any, request: Any) -> Any:
        """Add an invoice of the customer, which the node can pay."""
        return _add_invoice(self._customer.invoices, messages, request)

    async def send_payment(self, messages: Any, request: Any) -> AsyncGenerator[Any, None]:
        """Pay an invoice of the customer, and yield how that goes."""
        payment = self._payments.send(
            request.payment_request,
            _amount_msat(request.amt, request.amt_msat),
            _amount_msat(request.fee_limit_sat, request.fee_limit_msat),
        )
        async for state in self._payments.follow(payment, only_end=request.no_inflight_updates):
            yield _payment_message(messages, state)

    async def track_payment(self, messages: Any, request: Any) -> AsyncGenerator[Any, None]:
        """Yield the state of a payment until it has ended."""
        payment = self._payments.find(request.payment_hash)
        async for state in self._payments.follow(payment, only_end=request.no_inflight_updates):
            yield _payment_message(messages, state)

    async def lookup_invoice(self, messages: Any, request: Any) -> Any:
        """Return one invoice."""
        try:
            payment_hash = request.r_hash or bytes.fromhex(request.r_hash_str)
        except ValueError:
            payment_hash = b""
        if len(payment_hash) != _HASH_BYTES:
            raise lnd_refusal(f"payment hash must be exactly {_HASH_BYTES} bytes")
        invoice = self._book.find(payment_hash)
        if invoice is None:
            raise CallError(grpc.StatusCode.NOT_FOUND, "unable to locate invoice")
        return _invoice_message(messages, invoice)

    async def list_invoices(self, messages: Any, request: Any) -> Any:
        """Return a page of invoices."""
        page = self._book.page(
            request.index_offset,
            request.num_max_invoices or _DEFAULT_PAGE,
            newest_first=request.reversed,
            pending_only=request.pending_only,
        )
        return messages.ListInvoiceResponse(
            invoices=[_invoice_message(messages, invoice) for invoice in page],
            first_index_offset=page[0].add_index if page else 0,
            last_index_offset=page[-1].add_index if page else 0,
        )

    async def subscribe_invoices(self, messages: Any, request: Any) -> AsyncGenerator[Any, None]:
        """Yield invoices as they are added and settled, from the given indexes on."""
        async with aclosing(self._book.follow(request.add_index, request.settle_index)) as found:
            async for invoice in found:
                yield _invoice_message(messages, invoice)

    async def send_payment_sync(self, messages: Any, request: Any) -> Any:
        """Have the customer pay one of the node's invoices. Failures are part of the response, as in lnd."""
        if not request.payment_request:
            raise lnd_refusal("only payment requests can be paid here")
        try:
            invoice = await self._customer.pay(request.payment_request, _amount_msat(request.amt, request.amt_msat))
        except CustomerPaymentFailed as failure:
            return messages.SendResponse(payment_error=str(failure))
        return messages.SendResponse(
            payment_preimage=invoice.preimage,
            payment_hash=invoice.payment_hash,
            payment_route=messages.Route(total_amt=invoice.paid_msat // MSAT_PER_SAT, total_amt_msat=invoice.paid_msat),
        )


_Unary = Callable[[Any, Any], Awaitable[Any]]
_Stream = Callable[[Any, Any], AsyncGenerator[Any, None]]


class LndServiceHandler(grpc.GenericRpcHandler):
    """Serves the calls, from bytes to bytes, so that nothing is imported before the first one."""

    def __init__(self, lnd: LndService) -> None:
        self._unary: dict[str, tuple[str, _Unary]] = {
            f"{_SERVICE}GetInfo": ("GetInfoRequest", lnd.get_info),
            f"{_SERVICE}ChannelBalance": ("ChannelBalanceRequest", lnd.channel_balance),
            f"{_SERVICE}ListChannels": ("ListChannelsRequest", lnd.list_channels),
            f"{_SERVICE}WalletBalance": ("WalletBalanceRequest", lnd.wallet_balance),
            f"{_SERVICE}AddInvoice": ("Invoice", lnd.add_invoice),
            f"{_SERVICE}LookupInvoice": ("PaymentHash", lnd.lookup_invoice),
            f"{_SERVICE}ListInvoices": ("ListInvoiceRequest", lnd.list_invoices),
            f"{_SERVICE}SendPaymentSync": ("SendRequest", lnd.send_payment_sync),
            DEMO_INVOICE: ("Invoice", lnd.add_customer_invoice),
        }
        self._streams: dict[str, tuple[str, _Stream]] = {
            f"{_SERVICE}SubscribeInvoices": ("InvoiceSubscription", lnd.subscribe_invoices),
            f"{_ROUTER}SendPaymentV2": ("SendPaymentRequest", lnd.send_payment),
            f"{_ROUTER}TrackPaymentV2": ("TrackPaymentRequest", lnd.track_payment),
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call; None for a call of another service or one that is not served here."""
        name = handler_call_details.method
        if name in self._unary:
            return grpc.unary_unary_rpc_method_handler(_unary_handler(*self._unary[name]))
        if name in self._streams:
            return grpc.unary_stream_rpc_method_handler(_stream_handler(*self._streams[name]))
        return None


def _unary_handler(request_type: str, method: _Unary) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def answer(request: bytes, context: Context) -> bytes:
        stubs = await _load_stubs(context)
        try:
            message = await method(stubs.lightning, _parse(stubs, request_type, request))
        except CallError as error:
            await context.abort(error.code, error.details)
        written: bytes = message.SerializeToString()
        return written

    return answer


def _stream_handler(request_type: str, method: _Stream) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
    async def answers(request: bytes, context: Context) -> AsyncIterator[bytes]:
        stubs = await _load_stubs(context)
        try:
            asked = _parse(stubs, request_type, request)
        except CallError as error:
            await context.abort(error.code, error.details)
        try:
            async with aclosing(method(stubs.lightning, asked)) as found:
                async for message in found:
                    yield message.SerializeToString()
        except CallError as error:
            await context.abort(error.code, error.details)

    return answers


async def _load_stubs(context: Context) -> Stubs:
    """Import in a thread: streams that are under way go on."""
    try:
        return await asyncio.to_thread(load_stubs)
    except LndNotInstalled:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "to serve invoices, the node needs lcp-gateway[lnd]")


def _parse(stubs: Stubs, request_type: str, request: bytes) -> Any:
    kind = getattr(stubs.lightning, request_type, None) or getattr(stubs.router, request_type)
    try:
        return kind.FromString(request)
    except DecodeError as error:
        raise CallError(grpc.StatusCode.INTERNAL, "the request cannot be read") from error


def _amount_msat(sat: int, msat: int) -> int:
    if sat and msat:
        raise lnd_refusal("msat and sat arguments are mutually exclusive")
    return msat or sat * MSAT_PER_SAT


def _add_invoice(book: InvoiceBook, messages: Any, request: Any) -> Any:
    invoice = book.add(
        _amount_msat(request.value, request.value_msat),
        memo=request.memo,
        description_hash=request.description_hash,
        expiry_s=request.expiry,
        preimage=request.r_preimage,
    )
    return messages.AddInvoiceResponse(
        r_hash=invoice.payment_hash,
        payment_request=invoice.payment_request,
        add_index=invoice.add_index,
        payment_addr=invoice.payment_secret,
    )


def _payment_message(messages: Any, payment: Payment) -> Any:
    return messages.Payment(
        payment_hash=payment.payment_hash.hex(),
        payment_preimage=payment.preimage.hex() if payment.status == SUCCEEDED else _NO_PREIMAGE,
        value_msat=payment.amount_msat,
        value_sat=payment.amount_msat // MSAT_PER_SAT,
        fee_msat=payment.fee_msat if payment.status == SUCCEEDED else 0,
        status=payment.status,
        failure_reason=payment.failure_reason,
        creation_time_ns=payment.created_ns,
    )


def _invoice_message(messages: Any, invoice: Invoice) -> Any:
    state = _SETTLED if invoice.settled else _CANCELED if invoice.expired else _OPEN
    return messages.Invoice(
        memo=invoice.memo,
        r_preimage=invoice.preimage,
        r_hash=invoice.payment_hash,
        value=invoice.amount_msat // MSAT_PER_SAT,
        value_msat=invoice.amount_msat,
        settled=invoice.settled,
        creation_date=invoice.created_at,
        settle_date=invoice.settled_at,
        payment_request=invoice.payment_request,
        description_hash=invoice.description_hash,
        expiry=invoice.expiry_s,
        add_index=invoice.add_index,
        settle_index=invoice.settle_index,
        amt_paid=invoice.paid_msat,
        amt_paid_sat=invoice.paid_msat // MSAT_PER_SAT,
        amt_paid_msat=invoice.paid_msat,
        state=state,
        payment_addr=invoice.payment_secret,
    )
