"""A few calls of lnd's own service, simulated, so that top-ups can be paid at the node.

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
from lcp_gateway.lightning.lnd.stubs import LndNotInstalled, load_stubs
from lcp_gateway.node.invoices import Invoice, InvoiceBook, lnd_refusal
from lcp_gateway.node.peers import Peers
from lcp_gateway.node.status import CallError, not_found
from lcp_gateway.node.wallets import CustomerPaymentFailed, CustomerWallet, Wallet

Context = grpc.aio.ServicerContext[bytes, bytes]

_SERVICE: Final = "/lnrpc.Lightning/"
_HASH_BYTES: Final = 32
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
        self, network: str, *, book: InvoiceBook, customer: CustomerWallet, wallet: Wallet, peers: Peers
    ) -> None:
        self._network = network
        self._book = book
        self._customer = customer
        self._wallet = wallet
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
        """Add an invoice."""
        invoice = self._book.add(
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
            raise not_found("unable to locate invoice")
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
            "GetInfo": ("GetInfoRequest", lnd.get_info),
            "ChannelBalance": ("ChannelBalanceRequest", lnd.channel_balance),
            "ListChannels": ("ListChannelsRequest", lnd.list_channels),
            "WalletBalance": ("WalletBalanceRequest", lnd.wallet_balance),
            "AddInvoice": ("Invoice", lnd.add_invoice),
            "LookupInvoice": ("PaymentHash", lnd.lookup_invoice),
            "ListInvoices": ("ListInvoiceRequest", lnd.list_invoices),
            "SendPaymentSync": ("SendRequest", lnd.send_payment_sync),
        }
        self._streams: dict[str, tuple[str, _Stream]] = {
            "SubscribeInvoices": ("InvoiceSubscription", lnd.subscribe_invoices)
        }

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[Any, Any] | None":
        """Return the handler of a call; None for a call of another service or one that is not served here."""
        service, slash, name = handler_call_details.method.rpartition("/")
        if service + slash != _SERVICE:
            return None
        if name in self._unary:
            return grpc.unary_unary_rpc_method_handler(_unary_handler(*self._unary[name]))
        if name in self._streams:
            return grpc.unary_stream_rpc_method_handler(_stream_handler(*self._streams[name]))
        return None


def _unary_handler(request_type: str, method: _Unary) -> Callable[[bytes, Context], Awaitable[bytes]]:
    async def answer(request: bytes, context: Context) -> bytes:
        messages = await _load_messages(context)
        try:
            message = await method(messages, _parse(messages, request_type, request))
        except CallError as error:
            await context.abort(error.code, error.details)
        written: bytes = message.SerializeToString()
        return written

    return answer


def _stream_handler(request_type: str, method: _Stream) -> Callable[[bytes, Context], AsyncIterator[bytes]]:
    async def answers(request: bytes, context: Context) -> AsyncIterator[bytes]:
        messages = await _load_messages(context)
        try:
            asked = _parse(messages, request_type, request)
        except CallError as error:
            await context.abort(error.code, error.details)
        async with aclosing(method(messages, asked)) as found:
            async for message in found:
                yield message.SerializeToString()

    return answers


async def _load_messages(context: Context) -> Any:
    """Import in a thread: streams that are under way go on."""
    try:
        return (await asyncio.to_thread(load_stubs)).lightning
    except LndNotInstalled:
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "to serve invoices, the node needs lcp-gateway[lnd]")


def _parse(messages: Any, request_type: str, request: bytes) -> Any:
    try:
        return getattr(messages, request_type).FromString(request)
    except DecodeError as error:
        raise CallError(grpc.StatusCode.INTERNAL, "the request cannot be read") from error


def _amount_msat(sat: int, msat: int) -> int:
    if sat and msat:
        raise lnd_refusal("msat and sat arguments are mutually exclusive")
    return msat or sat * MSAT_PER_SAT


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
