"""Results that several gateways share through one Redis, so that a repeat may come to any of them.

Every order has a claim there while it is bought, and its result for a while after, under the names by which it may be
repeated. Claims run out unless they are renewed: then the journal says whether their gateway had paid before it died. All
names are keyed hashes and all contents are encrypted: a reader of that Redis learns sizes and times only.

While Redis is unreachable each gateway works alone: it still buys nothing twice itself, but a repeat that comes to another
one meanwhile is bought there as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from lcp_gateway.accounts.shared.calls import RedisUnavailable
from lcp_gateway.accounts.shared.claims import ClaimNames, FoundClaim, OrderCount, OwnClaim, RedisClaims, TooManyOrders
from lcp_gateway.accounts.shared.orders import RedisOrders
from lcp_gateway.accounts.shared.serialization import SerializedResult, serialize
from lcp_gateway.encryption import DecryptionFailed, Encryption
from lcp_gateway.purchase.held_quotes import HeldQuote
from lcp_gateway.purchase.idempotency import CacheLimits, KeyReused, RepeatKeys
from lcp_gateway.purchase.limits import WINDOW_S, LoopDetected
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import StartTask, start_unsupervised
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.shared_purchases import BoughtElsewhere, Claim, LostElsewhere
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

StateOfRequest = Callable[[str, str, datetime], Awaitable[State | None]]
"""The state of a request's purchase, by its key id, its request id and the earliest time; None if there is none.

May raise ``Refused`` where it cannot be known.
"""

LEASE_S: Final = 15.0
"""How long a claim lasts that is not renewed. More than twice as long as writing an intent may take: a gateway that finds
the claim run out finds the intent too."""
MAX_RESULT_BYTES: Final = 8 * 1024 * 1024

_FIRST_PAUSE_S: Final = 0.02
_MAX_PAUSE_S: Final = 0.25
# A claim is dated before its purchase, by the same clock; that may be set back a little in between.
_CLOCK_SLACK = timedelta(seconds=5)


class RedisResults:
    """``SharedPurchases`` of gateways with one Redis, one secret (of ``encryption``) and one journal.

    ``state_of`` asks the journal. ``limits`` says how long requests may be repeated; of results larger than ``max_bytes``
    only the facts are kept. A repeat of an order that is being bought waits ``wait_s`` for its end. ``on_joined`` gets
    how a repeat was answered: ``running``, ``replayed`` or ``lost``.
    """

    def __init__(
        self,
        claims: RedisClaims,
        orders: RedisOrders,
        encryption: Encryption,
        *,
        state_of: StateOfRequest,
        limits: CacheLimits,
        wait_s: float,
        max_bytes: int = MAX_RESULT_BYTES,
        on_joined: Callable[[str], None] = lambda _how: None,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        """``start_task`` starts the task that renews a claim until it has ended."""
        self._claims = claims
        self._orders = orders
        self._start_task = start_task
        self._encryption = encryption
        self._state_of = state_of
        self._limits = limits
        self._wait_s = wait_s
        self._max_bytes = max_bytes
        self._on_joined = on_joined

    async def claim(self, order: Order, repeat: RepeatKeys, per_minute: int) -> Claim | BoughtElsewhere:
        """Claim an order, or return its result from another gateway; waits while it is bought there.

        Raises:
            KeyReused, ResultLost, LoopDetected, Refused: as ``SharedPurchases`` says.
        """
        own = self._own_claim(order, repeat)
        if not own.names.looked_up and not per_minute:
            # Nothing can stand in its way: its purchase waits for it only where it pays.
            self._claims.make(own)
            return self._claimed(own, repeat, is_counted=True)
        count = None
        if per_minute:
            name = self._encryption.keyed_name(b"orders", order.key_id.encode(), order.body_sha256)
            count = OrderCount(name, per_minute, WINDOW_S)
        try:
            return await self._claim_or_find(order, repeat, own, count)
        except TooManyOrders as found:
            raise LoopDetected(per_minute, found.wait_s) from None

    async def _claim_or_find(
        self, order: Order, repeat: RepeatKeys, own: OwnClaim, count: OrderCount | None
    ) -> Claim | BoughtElsewhere:
        give_up_at = time.monotonic() + self._wait_s
        pause_s = _FIRST_PAUSE_S
        expired_id = b""
        waits = False
        is_counted = True
        while True:
            try:
                found = await self._claims.take(own, expired_id, count)
            except RedisUnavailable:
                # A gateway that is known to be buying it is waited for in any case.
                found, is_free, is_counted = None, not waits, count is None
            else:
                is_free = found is None
            if is_free:
                return self._claimed(own, repeat, is_counted=is_counted)
            if found is not None:
                if found.fingerprint != own.names.fingerprint:
                    raise KeyReused("the idempotency key was used with another request before")
                if found.has_ended:
                    bought = await self._bought(order, found)
                    self._on_joined("running" if waits else "replayed")
                    return bought
                if found.ran_out:
                    await self._check_journal(order, found)
                    expired_id = found.claim_id
                    continue
            waits = True
            if time.monotonic() >= give_up_at:
                raise self._lost("this is still being bought by another gateway", Verdict.UNKNOWN)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MAX_PAUSE_S)

    async def hold_quote(self, order: Order, held: HeldQuote) -> bool:
        """Hold a quote."""
        return await self._orders.hold(self._encryption, order, held, datetime.now(UTC))

    async def find_quote(self, quote_name: str) -> HeldQuote | None:
        """Return a held quote."""
        return await self._orders.find(self._encryption, quote_name)

    async def name_job(self, order: Order, keys: RepeatKeys, job_id: str) -> str:
        """Give an order's names to a background job, or return the job that has one of them."""
        names = self._names(order, keys)
        found = await self._orders.name_job(self._encryption, names, job_id)
        if found.fingerprint != names.fingerprint:
            raise KeyReused("the idempotency key was used with another request before")
        return found.job_id

    async def forget_job(self, order: Order, keys: RepeatKeys, job_id: str) -> None:
        """Take the names of a job back."""
        await self._orders.forget_job(self._encryption, self._names(order, keys), job_id)

    async def drop_quote(self, quote_name: str) -> bool:
        """Drop a held quote."""
        return await self._orders.drop(self._encryption, quote_name)

    def _claimed(self, own: OwnClaim, repeat: RepeatKeys, *, is_counted: bool) -> Claim:
        limits = self._limits
        keep_s = limits.bytes_for_s if repeat.key is not None else limits.repeats_for_s
        return _Claim(
            self._claims, self._encryption, own, keep_s, self._max_bytes, self._start_task, is_counted=is_counted
        )

    def _own_claim(self, order: Order, repeat: RepeatKeys) -> OwnClaim:
        own = OwnClaim(self._names(order, repeat))
        description = orjson.dumps({"request_id": order.request_id, "at": datetime.now(UTC).isoformat()})
        own.description = self._encryption.encrypt(_part(own.id, b"about"), description, own.names.fingerprint)
        return own

    def _names(self, order: Order, repeat: RepeatKeys) -> ClaimNames:
        """Return the names of an order, made of the same parts as the keys of the process's own cache."""
        keyed = self._encryption.keyed_name
        key_id, kind, digest = order.key_id.encode(), order.task.kind.encode(), order.body_sha256
        repeats_ms = round(self._limits.repeats_for_s * 1_000)
        by_body = keyed(b"body", key_id, kind, digest)
        names, keep_ms = [by_body], [repeats_ms]
        looked_up = [by_body] if repeat.is_retry else []
        if repeat.client_request_id is not None:
            by_client = keyed(b"client", key_id, repeat.client_request_id.encode(), digest)
            names.append(by_client)
            keep_ms.append(repeats_ms)
            looked_up.append(by_client)
        if repeat.key is not None:
            by_key = keyed(b"key", key_id, repeat.key.encode())
            names.append(by_key)
            keep_ms.append(round(self._limits.keys_for_s * 1_000))
            looked_up = [by_key]
        return ClaimNames(keyed(b"order", key_id, kind, digest), looked_up, names, keep_ms)

    async def _check_journal(self, order: Order, found: FoundClaim) -> None:
        """Return if the gateway of a claim that ran out had not paid, so that the order may be bought here.

        Raises:
            LostElsewhere: it had paid, or may have.
            Refused: the journal cannot be read.
        """
        try:
            description = orjson.loads(
                self._encryption.decrypt(_part(found.claim_id, b"about"), found.description, found.fingerprint)
            )
        except DecryptionFailed:
            raise self._unreadable() from None
        since = datetime.fromisoformat(description["at"]) - _CLOCK_SLACK
        state = await self._state_of(order.key_id, description["request_id"], since)
        if state is not None and state is not State.NOT_PAID:
            raise self._lost(
                "the gateway that bought this is gone, and its answer with it; asking again would pay again",
                VERDICTS[state],
            )

    async def _bought(self, order: Order, found: FoundClaim) -> BoughtElsewhere:
        """Return the result of an order that was bought at another gateway.

        Raises:
            LostElsewhere: its bytes are no longer kept, or cannot be read.
        """

        def decrypt(part: bytes, ciphertext: bytes) -> bytes:
            name = _part(found.claim_id, part)
            return self._encryption.decrypt(name, ciphertext, found.fingerprint)

        try:
            facts = SerializedResult(decrypt(b"facts", found.facts))
            if not facts.has_body:
                return facts.bought(order, b"")
            body = await self._claims.body(found.claim_id) if facts.is_kept else None
            if body is not None:
                return facts.bought(order, decrypt(b"body", body))
        except DecryptionFailed:
            raise self._unreadable() from None
        except RedisUnavailable:
            raise self._lost(
                "this was bought before, and its answer is not available right now", Verdict.UNKNOWN
            ) from None
        raise self._lost(
            "this was bought before and its answer is no longer held; asking again would pay again",
            (purchase := facts.purchase(order)).verdict,
            purchase,
        )

    def _unreadable(self) -> LostElsewhere:
        return self._lost("the record of this request cannot be read", Verdict.UNKNOWN)

    def _lost(self, message: str, verdict: Verdict, purchase: Purchase | None = None) -> LostElsewhere:
        self._on_joined("lost")
        quote = None if purchase is None else purchase.quote
        return LostElsewhere(message, verdict=verdict, quote=quote)


class _Claim:
    """A claim of this process, renewed until it has ended.

    One that could not be made, because Redis was unreachable, is made by the first renewal that succeeds.
    """

    def __init__(
        self,
        claims: RedisClaims,
        encryption: Encryption,
        own: OwnClaim,
        keep_s: float,
        max_bytes: int,
        start_task: StartTask,
        *,
        is_counted: bool = True,
    ) -> None:
        self.is_counted = is_counted
        self._claims = claims
        self._encryption = encryption
        self._own = own
        self._keep_s = keep_s
        self._max_bytes = max_bytes
        self._start_task = start_task
        self._renewing: asyncio.Task[None] | None = None
        # Most purchases end before their claim has to be renewed.
        self._timer = asyncio.get_running_loop().call_later(claims.lease_s / 3, self._start_renewing)

    def _start_renewing(self) -> None:
        own = self._own
        self._renewing = self._start_task(self._keep_renewing, may_return=lambda: own.is_lost)

    async def may_pay(self) -> bool:
        """Return whether this gateway still holds the claim, once it is made; renews one that was not renewed lately."""
        own = self._own
        await self._claims.until_made(own)
        if not own.is_lost and time.monotonic() - own.renewed_at > self._claims.lease_s / 2:
            await self._claims.renew(own)
        return not own.is_lost

    async def ended(self, answer: ResultBuffer) -> None:
        """Store the result; release the claim where nothing was paid."""
        # First, so that no renewal creates the claim again.
        self._timer.cancel()
        if self._renewing is not None:
            self._renewing.cancel()
        purchase = answer.purchase
        if purchase is None or (answer.error is not None and answer.verdict is Verdict.NONE):
            self._claims.release(self._own)
        else:
            # While Redis is unreachable the claim runs out, and the journal decides.
            await self._store(answer, purchase)

    async def _store(self, answer: ResultBuffer, purchase: Purchase) -> None:
        own = self._own
        body = None
        if answer.head is not None and answer.readable and answer.size <= self._max_bytes:
            body = await _bytes_of(answer)

        def encrypt(part: bytes, content: bytes) -> bytes:
            return self._encryption.encrypt(_part(own.id, part), content, own.names.fingerprint)

        self._claims.end(
            own,
            encrypt(b"facts", serialize(answer, purchase, is_kept=body is not None)),
            b"" if body is None else encrypt(b"body", body),
            self._keep_s,
        )

    async def _keep_renewing(self) -> None:
        while not self._own.is_lost:
            await self._claims.renew(self._own)
            # One that was missed is made up for by the next; two fit into a lease.
            await asyncio.sleep(self._claims.lease_s / 3)


async def _bytes_of(answer: ResultBuffer) -> bytes:
    blocks: list[bytes] = []
    try:
        async for block in answer.chunks():
            blocks.append(block)  # noqa: PERF401 - blocks before an error are kept
    except Exception as error:
        # The answer's own error comes after its bytes.
        if error is not answer.error:
            raise
    return b"".join(blocks)


def _part(claim_id: bytes, part: bytes) -> bytes:
    return claim_id + b" " + part
