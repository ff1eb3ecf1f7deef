"""The client of lnd: its identity, its channels, and payments by the hash of their invoice.

Only calls that read are made here; none can pay.
"""

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import grpc.aio

from lcp_gateway.constants import MSAT_PER_SAT
from lcp_gateway.lightning.lnd.channel import KEEPALIVE_S, LndAddress, LndChannel, lnd_errors
from lcp_gateway.lightning.lnd.records import (
    FailureReason,
    LndBalance,
    LndError,
    LndInfo,
    PaymentPage,
    PaymentRecord,
    PaymentState,
)
from lcp_gateway.purchase.money import Msat
from lcp_gateway.upstream_status import UpstreamStatus

_PAGE = 100
_MAX_PAGES = 50
_HASH_BYTES = 32

# Numbers of lnrpc.Payment.PaymentStatus and lnrpc.PaymentFailureReason.
_SUCCEEDED = 2
_FAILED = 3
_FAILURE_REASONS = MappingProxyType(
    {
        1: FailureReason.TIMEOUT,
        2: FailureReason.NO_ROUTE,
        3: FailureReason.ERROR,
        4: FailureReason.INCORRECT_PAYMENT_DETAILS,
        5: FailureReason.INSUFFICIENT_BALANCE,
        6: FailureReason.CANCELLED,
    }
)


@dataclass(frozen=True, slots=True)
class LndChannels:
    """A summary of the channels.

    ``spendable_msat`` is the amount that the active ones can send after their reserves, ``largest_spendable_msat`` that
    of the best single one. Both are upper bounds: later on-chain fees and routes are not counted.
    """

    active: int
    inactive: int
    spendable_msat: Msat
    largest_spendable_msat: Msat
    pending_htlcs: int


@dataclass(frozen=True, slots=True)
class LndInvoice:
    """An invoice as lnd reads it; ``amount_msat`` is None when the payer chooses, times are Unix seconds."""

    payee: str
    payment_hash: bytes
    amount_msat: Msat | None
    timestamp: int
    expiry_s: int
    description: str
    description_hash: bytes | None


class LndClient(LndChannel):
    """Reads from one lnd. Every method raises ``LndError`` when there is no answer in time."""

    def __init__(self, address: LndAddress, *, timeout_s: float = 5.0, keepalive_s: float = KEEPALIVE_S) -> None:
        super().__init__(address, timeout_s=timeout_s, keepalive_s=keepalive_s)
        self._router = self._stubs.router_grpc.RouterStub(self._channel)

    async def info(self) -> LndInfo:
        """Return lnd's identity and whether it follows the chain. Needs ``info:read``."""
        answer = await self._ask(self._lightning.GetInfo, self._stubs.lightning.GetInfoRequest())
        return LndInfo(
            identity=answer.identity_pubkey,
            alias=answer.alias,
            version=answer.version,
            network=answer.chains[0].network if answer.chains else "",
            synced_to_chain=answer.synced_to_chain,
            synced_to_graph=answer.synced_to_graph,
            block_height=answer.block_height,
            peers=answer.num_peers,
            channels_active=answer.num_active_channels,
            channels_inactive=answer.num_inactive_channels,
            channels_pending=answer.num_pending_channels,
        )

    async def balance(self) -> LndBalance:
        """Return the balance of all channels. Needs ``offchain:read``."""
        request = self._stubs.lightning.ChannelBalanceRequest()
        answer = await self._ask(self._lightning.ChannelBalance, request)
        return LndBalance(
            local_msat=Msat(answer.local_balance.msat),
            remote_msat=Msat(answer.remote_balance.msat),
            unsettled_local_msat=Msat(answer.unsettled_local_balance.msat),
            pending_local_msat=Msat(answer.pending_open_local_balance.msat),
        )

    async def channels(self) -> LndChannels:
        """Return a summary of the channels. Needs ``offchain:read``."""
        request = self._stubs.lightning.ListChannelsRequest()
        answer = await self._ask(self._lightning.ListChannels, request)
        active = [channel for channel in answer.channels if channel.active]
        spendable = [max(0, channel.local_balance - channel.local_constraints.chan_reserve_sat) for channel in active]
        return LndChannels(
            active=len(active),
            inactive=len(answer.channels) - len(active),
            spendable_msat=Msat(sum(spendable) * MSAT_PER_SAT),
            largest_spendable_msat=Msat(max(spendable, default=0) * MSAT_PER_SAT),
            pending_htlcs=sum(len(channel.pending_htlcs) for channel in answer.channels),
        )

    async def payment(self, payment_hash: bytes) -> PaymentRecord:
        """Return a payment by its hash (32 bytes). Needs ``offchain:read``.

        With an lnd that lacks the router's calls, its list of payments is read instead, newest first.
        """
        try:
            return await self._tracked(payment_hash)
        except LndError as error:
            if error.status == UpstreamStatus.NOT_FOUND:
                return PaymentRecord(payment_hash, PaymentState.UNKNOWN_TO_LND)
            if error.status == UpstreamStatus.UNIMPLEMENTED:
                return await self._listed(payment_hash)
            raise

    async def payments_after(self, index: int, limit: int) -> PaymentPage:
        """Return the payments with a larger index, oldest first. Needs ``offchain:read``."""
        return await self._page(index_offset=index, max_payments=limit, reversed=False)

    async def payments_before(self, index: int, limit: int) -> PaymentPage:
        """Return the last payments with a smaller index, of all for 0; oldest first. Needs ``offchain:read``."""
        return await self._page(index_offset=index, max_payments=limit, reversed=True)

    async def decode(self, payment_request: str) -> LndInvoice:
        """Return an invoice as lnd decodes it. Needs ``offchain:read``."""
        request = self._stubs.lightning.PayReqString(pay_req=payment_request)
        answer = await self._ask(self._lightning.DecodePayReq, request)
        return LndInvoice(
            payee=answer.destination,
            payment_hash=_bytes32(answer.payment_hash),
            amount_msat=Msat(answer.num_msat) if answer.num_msat else None,
            timestamp=answer.timestamp,
            expiry_s=answer.expiry,
            description=answer.description,
            description_hash=_bytes32(answer.description_hash) if answer.description_hash else None,
        )

    async def _tracked(self, payment_hash: bytes) -> PaymentRecord:
        """Read the first update, the present state; with in-flight updates off it might come in days."""
        request = self._stubs.router.TrackPaymentRequest(payment_hash=payment_hash, no_inflight_updates=False)
        async with lnd_errors():
            call = self._router.TrackPaymentV2(request, timeout=self._timeout_s, metadata=self._metadata)
            try:
                update = await call.read()
            finally:
                call.cancel()
        if update is grpc.aio.EOF:
            raise LndError(UpstreamStatus.UNKNOWN, "the answer ended before it began", retryable=True)
        return payment_record(update)

    async def _listed(self, payment_hash: bytes) -> PaymentRecord:
        """Search for a payment in pages, newest first; only a list read to its end proves that it is absent."""
        wanted, before = payment_hash.hex(), 0
        for _ in range(_MAX_PAGES):
            request = self._stubs.lightning.ListPaymentsRequest(
                include_incomplete=True, index_offset=before, max_payments=_PAGE, reversed=True
            )
            answer = await self._ask(self._lightning.ListPayments, request)
            for payment in answer.payments:
                if payment.payment_hash == wanted:
                    return payment_record(payment)
            if not answer.payments:
                return PaymentRecord(payment_hash, PaymentState.UNKNOWN_TO_LND)
            before = answer.first_index_offset
        raise LndError(
            UpstreamStatus.OUT_OF_RANGE, f"the payment is not among the newest {_PAGE * _MAX_PAGES}", retryable=False
        )

    async def _page(self, **which: int) -> PaymentPage:
        request = self._stubs.lightning.ListPaymentsRequest(include_incomplete=True, **which)
        answer = await self._ask(self._lightning.ListPayments, request)
        payments = []
        for payment in answer.payments:
            # A malformed one, such as a special payment of another program, must not hide the others.
            with suppress(LndError):
                payments.append((payment.payment_index, payment_record(payment)))
        return PaymentPage(payments, len(answer.payments), answer.first_index_offset, answer.last_index_offset)


def payment_record(payment: Any) -> PaymentRecord:
    """Return a payment of lnd's as a record.

    Raises:
        LndError: it is malformed.
    """
    payment_hash = _bytes32(payment.payment_hash)
    created_at = _time(payment.creation_time_ns)
    amount_msat = Msat(payment.value_msat)
    if payment.status == _SUCCEEDED:
        return PaymentRecord(
            payment_hash,
            PaymentState.SETTLED,
            amount_msat=amount_msat,
            fee_msat=Msat(payment.fee_msat),
            preimage=_bytes32(payment.payment_preimage),
            created_at=created_at,
        )
    if payment.status == _FAILED:
        return PaymentRecord(
            payment_hash,
            PaymentState.FAILED,
            amount_msat=amount_msat,
            failure=_FAILURE_REASONS.get(payment.failure_reason, FailureReason.OTHER),
            created_at=created_at,
        )
    # In every other state, those of a later lnd too, money may still move.
    return PaymentRecord(payment_hash, PaymentState.IN_FLIGHT, amount_msat=amount_msat, created_at=created_at)


def _time(nanoseconds: int) -> datetime | None:
    """Return a time of lnd; None for none, and for one that is on no calendar."""
    if nanoseconds <= 0:
        return None
    try:
        return datetime.fromtimestamp(nanoseconds // 1_000_000_000, UTC)
    except (OverflowError, ValueError, OSError):
        return None


def _bytes32(text: str) -> bytes:
    try:
        value = bytes.fromhex(text)
    except ValueError:
        value = b""
    if len(value) != _HASH_BYTES:
        raise LndError(UpstreamStatus.INTERNAL, "a hash in its answer is malformed", retryable=False)
    return value
