"""The permissions of a macaroon at lnd, probed by calls that change nothing.

lnd checks the macaroon before the request, so a request that it must refuse shows whether the call is allowed: an
invoice with two amounts is not added, a payment of a random hash is not found. lnd lists a macaroon's permissions only
for a macaroon that may ask for them, which the gateway's may not.
"""

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from lcp_gateway.lightning.lnd.channel import NOT_READY, LndAddress, LndChannel, lnd_errors
from lcp_gateway.lightning.lnd.records import LndError

_NO_SUCH_SETTLEMENT = 1 << 62
_LISTENS_S = 1.0
_PACKAGES: Final = MappingProxyType({"Lightning": "lnrpc", "Router": "routerrpc", "Invoices": "invoicesrpc"})
# lnd's texts for a macaroon of another node, of a root key that was deleted, for none, for a file that holds none, and
# for one whose time is over. Observed, but for the last.
_NOT_ACCEPTED: Final = (
    "verification failed",
    "cannot get macaroon",
    "expected 1 macaroon",
    "data format of binary-encoded macaroon",
    "macaroon has expired",
)


@dataclass(frozen=True, slots=True)
class Permission:
    """A call of lnd, the permission that it needs (``invoices:write``), and its purpose in the gateway."""

    call: str
    takes: str
    purpose: str

    @property
    def uri(self) -> str:
        """The call as ``lncli bakemacaroon`` takes it."""
        service, _, method = self.call.partition(".")
        return f"uri:/{_PACKAGES[service]}.{service}/{method}"


READING: Final = (
    Permission("Lightning.GetInfo", "info:read", "identity and network"),
    Permission("Lightning.ChannelBalance", "offchain:read", "the balance"),
    Permission("Lightning.ListChannels", "offchain:read", "the amount that can be paid"),
    Permission("Lightning.ListPayments", "offchain:read", "fees and preimages"),
    Permission("Router.TrackPaymentV2", "offchain:read", "the outcome of unknown payments"),
)
"""The calls that ``lnd_macaroon_file`` has to allow."""

SELLING: Final = (
    Permission("Lightning.GetInfo", "info:read", "the node that issues the invoices"),
    Permission("Lightning.AddInvoice", "invoices:write", "top-ups"),
    Permission("Lightning.LookupInvoice", "invoices:read", "whether a top-up was paid"),
    Permission("Lightning.ListInvoices", "invoices:read", "the first settlement"),
    Permission("Lightning.SubscribeInvoices", "invoices:read", "settlements as they happen"),
)
"""The calls that the macaroon of the invoice issuer has to allow."""


PAYING: Final = (
    Permission("Lightning.GetInfo", "info:read", "the node that pays"),
    Permission("Lightning.ListChannels", "offchain:read", "whether it can cover all balances"),
    Permission("Router.TrackPaymentV2", "offchain:read", "what became of a withdrawal"),
    Permission("Router.SendPaymentV2", "offchain:write", "withdrawals"),
)
"""The calls that ``lnd_withdrawal_macaroon_file`` has to allow."""

NODE_LISTENING: Final = (
    Permission("Lightning.GetInfo", "info:read", "the node's id and network"),
    Permission("Lightning.ListPeers", "peers:read", "the peers that are connected"),
    Permission("Lightning.SubscribePeerEvents", "peers:read", "peers that come and go"),
    Permission("Lightning.SubscribeCustomMessages", "offchain:read", "messages of peers"),
    Permission("Lightning.SendCustomMessage", "offchain:write", "messages to peers"),
    Permission("Lightning.ListChannels", "offchain:read", "whether a peer may be disconnected"),
    Permission("Lightning.DisconnectPeer", "peers:write", "ending the connection with a peer that breaks the protocol"),
)
"""The calls that the macaroon of every node of our own over lnd has to allow."""

NODE_CONNECTING: Final = (
    Permission("Lightning.ConnectPeer", "peers:write", "connections with the peers that are named"),
)
"""The calls that a node which keeps lnd connected with named peers needs beside ``NODE_LISTENING``."""

NODE_BUYING: Final = (
    Permission("Router.SendPaymentV2", "offchain:write", "paying jobs"),
    Permission("Router.TrackPaymentV2", "offchain:read", "the outcome of payments after an interruption"),
)
"""The calls that a node which buys needs beside ``NODE_LISTENING``."""

NODE_SELLING: Final = (
    Permission("Lightning.AddInvoice", "invoices:write", "invoices of jobs"),
    Permission("Lightning.LookupInvoice", "invoices:read", "whether a job was paid while the node was away"),
    Permission("Lightning.ListInvoices", "invoices:read", "the first settlement"),
    Permission("Lightning.SubscribeInvoices", "invoices:read", "settlements as they happen"),
    Permission("Invoices.CancelInvoice", "invoices:write", "invoices of jobs that are not wanted any more"),
)
"""The calls that a node which sells needs beside ``NODE_LISTENING``."""

NODE_HOLDING: Final = (
    Permission("Invoices.AddHoldInvoice", "invoices:write", "invoices whose payment is returned if the job fails"),
    Permission("Invoices.SettleInvoice", "invoices:write", "taking such a payment"),
    Permission("Invoices.SubscribeSingleInvoice", "invoices:read", "such payments as they arrive"),
)
"""The calls that a node which sells with hold invoices needs beside ``NODE_SELLING``."""


_NO_SUCH_HASH: Final = secrets.token_bytes(32)
_HARMLESS: Final[Mapping[str, tuple[str, Mapping[str, Any]]]] = MappingProxyType(
    {
        "Lightning.GetInfo": ("GetInfoRequest", {}),
        "Lightning.ChannelBalance": ("ChannelBalanceRequest", {}),
        "Lightning.ListChannels": ("ListChannelsRequest", {}),
        "Lightning.ListPayments": (
            "ListPaymentsRequest",
            {"include_incomplete": True, "max_payments": 1, "reversed": True},
        ),
        # Two amounts, and a memo longer than any: lnd adds no such invoice.
        "Lightning.AddInvoice": ("Invoice", {"value": 1, "value_msat": 1, "memo": "x" * 2_000}),
        "Lightning.LookupInvoice": ("PaymentHash", {"r_hash": _NO_SUCH_HASH}),
        "Lightning.ListInvoices": ("ListInvoiceRequest", {"num_max_invoices": 1, "reversed": True}),
        "Lightning.SubscribeInvoices": ("InvoiceSubscription", {"settle_index": _NO_SUCH_SETTLEMENT}),
        "Router.TrackPaymentV2": ("TrackPaymentRequest", {"payment_hash": _NO_SUCH_HASH}),
        # No invoice, and no time limit, which lnd requires: it begins no such payment.
        "Router.SendPaymentV2": ("SendPaymentRequest", {}),
        # Those of a node of our own: peers and hashes are too short for lnd to do anything with them.
        "Lightning.ListPeers": ("ListPeersRequest", {}),
        "Lightning.SubscribePeerEvents": ("PeerEventSubscription", {}),
        "Lightning.SubscribeCustomMessages": ("SubscribeCustomMessagesRequest", {}),
        "Lightning.SendCustomMessage": ("SendCustomMessageRequest", {}),
        "Lightning.ConnectPeer": ("ConnectPeerRequest", {}),
        "Lightning.DisconnectPeer": ("DisconnectPeerRequest", {}),
        "Invoices.CancelInvoice": ("CancelInvoiceMsg", {"payment_hash": b"\0"}),
        "Invoices.SettleInvoice": ("SettleInvoiceMsg", {"preimage": b"\0"}),
        "Invoices.AddHoldInvoice": ("AddHoldInvoiceRequest", {"hash": b"\0", "value": 1, "value_msat": 1}),
        "Invoices.SubscribeSingleInvoice": ("SubscribeSingleInvoiceRequest", {"r_hash": b"\0"}),
    }
)
"""The request of each call that changes nothing at lnd: the name of its message, and its fields."""


class MacaroonNotAccepted(LndError):
    """lnd does not accept this macaroon for any call."""


class MacaroonProbe(LndChannel):
    """Probes what one macaroon allows."""

    def __init__(self, address: LndAddress, *, timeout_s: float = 5.0) -> None:
        super().__init__(address, timeout_s=timeout_s)
        stubs = self._stubs
        self._services: dict[str, tuple[Any, Any]] = {
            "Lightning": (self._lightning, stubs.lightning),
            "Router": (stubs.router_grpc.RouterStub(self._channel), stubs.router),
            "Invoices": (stubs.invoices_grpc.InvoicesStub(self._channel), stubs.invoices),
        }

    async def missing(self, wanted: Sequence[Permission]) -> Sequence[Permission]:
        """Return the calls that the macaroon does not allow.

        Raises:
            MacaroonNotAccepted: lnd accepts it for no call at all.
            LndError: lnd does not answer.
        """
        allowed = await asyncio.gather(*(self._is_allowed(it.call) for it in wanted))
        return [it for it, is_allowed in zip(wanted, allowed, strict=True) if not is_allowed]

    async def may_pay(self) -> bool:
        """Return whether the macaroon is known to allow spending; a macaroon that may not ask is assumed not to.

        Raises:
            LndError: lnd does not answer.
        """
        messages = self._stubs.lightning
        request = messages.CheckMacPermRequest(
            macaroon=b"".join(bytes.fromhex(value) for _, value in self._metadata),
            permissions=[messages.MacaroonPermission(entity="offchain", action="write")],
        )
        try:
            answer = await self._ask(self._lightning.CheckMacaroonPermissions, request)
        except LndError as error:
            if error.status.is_unanswered:
                raise
            return False
        return bool(answer.valid)

    async def _is_allowed(self, call: str) -> bool:
        try:
            async with lnd_errors():
                await self._try(call)
        except LndError as error:
            text = str(error)
            if "permission denied" in text:
                return False
            if any(words in text for words in _NOT_ACCEPTED):
                raise MacaroonNotAccepted(error.status, error.message, retryable=False) from error
            if error.status.is_unanswered or NOT_READY.search(text):
                raise
        return True

    async def _try(self, call: str) -> None:
        if call not in _HARMLESS:
            raise ValueError(f"no harmless form of {call} is known")
        service, _, name = call.partition(".")
        stub, messages = self._services[service]
        kind, fields = _HARMLESS[call]
        method, request = getattr(stub, name), getattr(messages, kind)(**fields)
        if service == "Router" or name.startswith("Subscribe"):
            # A subscription that is allowed is without an answer, and one that is not ends at once.
            listens_s = self._timeout_s if service == "Router" else _LISTENS_S
            await self._listen(method(request, metadata=self._metadata), listens_s)
        else:
            await self._ask(method, request)

    async def _listen(self, stream: Any, listens_s: float) -> None:
        """Wait for the first answer of a stream, or its refusal; a stream without either is one that is allowed."""
        reading = asyncio.ensure_future(stream.read())
        try:
            await asyncio.wait([reading], timeout=listens_s)
            if not reading.done():
                await self._wait_for_answer()
            if reading.done():
                await reading
        finally:
            stream.cancel()
            reading.cancel()

    async def _wait_for_answer(self) -> None:
        """Wait until lnd has answered a later call: however slow it is, a stream that it refuses has been refused by then."""
        try:
            await self._ask(self._lightning.GetInfo, self._stubs.lightning.GetInfoRequest())
        except LndError as error:
            if error.status.is_unanswered:
                raise
