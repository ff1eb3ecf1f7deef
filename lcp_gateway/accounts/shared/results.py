"""Answers that several gateways share through one Redis, so that a repeat may come to any of them.

Every order has a claim there while it is bought, and what came of it for a while after, under the names by which it may
be asked for again. Claims run out unless they are renewed: then the journal says whether their gateway had paid before it
died. All names are keyed hashes and all contents are sealed: whoever reads that Redis learns nothing but sizes and times.

While Redis is away every gateway is on its own: it still buys nothing twice itself, but a repeat that comes to another
one meanwhile is bought there as well.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final

import orjson

from lcp_gateway.accounts.shared.claims import (
    ClaimNames,
    ClaimsUnavailable,
    FoundClaim,
    OwnClaim,
    RedisClaims,
)
from lcp_gateway.accounts.shared.encryption import DecryptionFailed, Seals
from lcp_gateway.accounts.shared.serialization import SerializedResult, serialize
from lcp_gateway.purchase.idempotency import CacheLimits, KeyReused, RepeatKeys
from lcp_gateway.purchase.order import Order
from lcp_gateway.purchase.ports import StartTask, start_unsupervised
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.shared_purchases import BoughtElsewhere, Claim, LostElsewhere
from lcp_gateway.purchase.states import VERDICTS, State, Verdict

StateOfRequest = Callable[[str, str, datetime], Awaitable[State | None]]
"""Tells where the purchase of a request stands, by its key id, its request id and the earliest time; None if none is.

May raise ``Refused`` where it cannot be told.
"""

LEASE_S: Final = 15.0
"""How long a claim stands that is not renewed. More than twice what an intent may take to be written: whoever finds it
run out finds the intent too."""
MAX_RESULT_BYTES: Final = 8 * 1024 * 1024

_FIRST_PAUSE_S: Final = 0.02
_MOST_PAUSE_S: Final = 0.25
# A claim is dated before its purchase, by the same clock; that may be set back a little in between.
_CLOCK_SLACK = timedelta(seconds=5)


class RedisAnswers:
    """``SharedPurchases`` of gateways that have one Redis, one secret (of ``seals``) and one journal together.

    ``state_of`` asks the journal. ``limits`` says how long things may be asked for again; of answers larger than
    ``most_bytes`` only that they were bought is kept. Whoever meets a running order waits ``wait_s`` for its end.
    ``on_joined`` hears how a repeat was answered: ``running``, ``replayed`` or ``lost``.
    """

    def __init__(
        self,
        claims: RedisClaims,
        seals: Seals,
        *,
        state_of: StateOfRequest,
        limits: CacheLimits,
        wait_s: float,
        most_bytes: int = MAX_RESULT_BYTES,
        on_joined: Callable[[str], None] = lambda _how: None,
        start_task: StartTask = start_unsupervised,
    ) -> None:
        """``start_task`` starts what renews a claim until it has ended."""
        self._claims = claims
        self._start_task = start_task
        self._seals = seals
        self._state_of = state_of
        self._limits = limits
        self._wait_s = wait_s
        self._most_bytes = most_bytes
        self._on_joined = on_joined

    async def claim(self, order: Order, repeat: RepeatKeys) -> Claim | BoughtElsewhere:
        """Claim an order, or give what came of it elsewhere; waits while it is bought there.

        Raises:
            KeyReused, AnswerLost, Refused: as ``SharedPurchases`` says.
        """
        stand = self._stand(order, repeat)
        give_up_at = time.monotonic() + self._wait_s
        pause_s = _FIRST_PAUSE_S
        dead = b""
        waits = False
        while True:
            try:
                found = await self._claims.take(stand, dead)
            except ClaimsUnavailable:
                # Somebody who is known to be at it is waited for all the same.
                found, is_free = None, not waits
            else:
                is_free = found is None
            if is_free:
                return self._claimed(stand, repeat)
            if found is not None:
                if found.mark != stand.names.mark:
                    raise KeyReused("the idempotency key was used with another request before")
                if found.has_ended:
                    bought = await self._bought(order, found)
                    self._on_joined("running" if waits else "replayed")
                    return bought
                if found.ran_out:
                    await self._check_journal(order, found)
                    dead = found.claim_id
                    continue
            waits = True
            if time.monotonic() >= give_up_at:
                raise self._lost("this is still being bought by another gateway", Verdict.UNKNOWN)
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _MOST_PAUSE_S)

    def _claimed(self, stand: OwnClaim, repeat: RepeatKeys) -> Claim:
        limits = self._limits
        keep_s = limits.bytes_for_s if repeat.key is not None else limits.repeats_for_s
        return _Claim(self._claims, self._seals, stand, keep_s, self._most_bytes, self._start_task)

    def _stand(self, order: Order, repeat: RepeatKeys) -> OwnClaim:
        names = self._names(order, repeat)
        stand = OwnClaim(names)
        about = orjson.dumps({"request_id": order.request_id, "at": datetime.now(UTC).isoformat()})
        stand.about = self._seals.close(_part(stand.id, b"about"), about, names.mark)
        return stand

    def _names(self, order: Order, repeat: RepeatKeys) -> ClaimNames:
        """Give the names of an order: those that the process's own memory goes by."""
        key_id, kind, digest = order.key_id.encode(), order.task.kind.encode(), order.body_sha256
        repeats_ms = round(self._limits.repeats_for_s * 1_000)
        by_body = self._seals.name(b"body", key_id, kind, digest)
        names, keep_ms = [by_body], [repeats_ms]
        looked_at = [by_body] if repeat.is_retry else []
        if repeat.client_request_id is not None:
            client = repeat.client_request_id.encode()
            by_client = self._seals.name(b"client", key_id, client, digest)
            names.append(by_client)
            keep_ms.append(repeats_ms)
            looked_at.append(by_client)
        if repeat.key is not None:
            by_key = self._seals.name(b"key", key_id, repeat.key.encode())
            names.append(by_key)
            keep_ms.append(round(self._limits.keys_for_s * 1_000))
            looked_at = [by_key]
        mark = self._seals.name(b"order", key_id, kind, digest)
        return ClaimNames(mark, looked_at, names, keep_ms)

    async def _check_journal(self, order: Order, found: FoundClaim) -> None:
        """Let an order be bought whose gateway is gone and had not paid.

        Raises:
            LostElsewhere: it had, or may have.
            Refused: the journal cannot tell.
        """
        try:
            opened = self._seals.open(_part(found.claim_id, b"about"), found.about, found.mark)
        except DecryptionFailed:
            raise self._unreadable() from None
        about = orjson.loads(opened)
        since = datetime.fromisoformat(about["at"]) - _CLOCK_SLACK
        state = await self._state_of(order.key_id, about["request_id"], since)
        if state is not None and state is not State.NOT_PAID:
            raise self._lost(
                "the gateway that bought this is gone, and its answer with it; asking again would pay again",
                VERDICTS[state],
            )

    async def _bought(self, order: Order, found: FoundClaim) -> BoughtElsewhere:
        """Give what came of an order.

        Raises:
            LostElsewhere: its bytes are no longer kept, or cannot be had.
        """
        try:
            facts = SerializedResult(
                self._seals.open(_part(found.claim_id, b"facts"), found.facts, found.mark)
            )
            if not facts.has_body:
                return facts.bought(order, b"")
            sealed = await self._claims.body(found.claim_id) if facts.is_kept else None
            if sealed is not None:
                body = self._seals.open(_part(found.claim_id, b"body"), sealed, found.mark)
                return facts.bought(order, body)
        except DecryptionFailed:
            raise self._unreadable() from None
        except ClaimsUnavailable:
            raise self._lost(
                "this was bought before, and its answer cannot be had right now", Verdict.UNKNOWN
            ) from None
        raise self._lost(
            "this was bought before and its answer is no longer held; asking again would pay again",
            (purchase := facts.purchase(order)).verdict,
            purchase,
        )

    def _unreadable(self) -> LostElsewhere:
        return self._lost("what is known of this request cannot be read", Verdict.UNKNOWN)

    def _lost(
        self, message: str, verdict: Verdict, purchase: Purchase | None = None
    ) -> LostElsewhere:
        self._on_joined("lost")
        quote = None if purchase is None else purchase.quote
        return LostElsewhere(message, verdict=verdict, quote=quote)


class _Claim:
    """A claim of this process, renewed by itself until it has ended.

    One that could not be made, because Redis is away, is made by the first renewal that succeeds.
    """

    def __init__(
        self,
        claims: RedisClaims,
        seals: Seals,
        stand: OwnClaim,
        keep_s: float,
        most_bytes: int,
        start_task: StartTask,
    ) -> None:
        self._claims = claims
        self._seals = seals
        self._stand = stand
        self._keep_s = keep_s
        self._most_bytes = most_bytes
        self._renewing = start_task(self._keep_renewing, may_return=lambda: stand.is_lost)

    async def may_pay(self) -> bool:
        """Tell whether nobody else may pay; asks where the claim was not renewed lately."""
        stand = self._stand
        if not stand.is_lost and time.monotonic() - stand.renewed_at > self._claims.lease_s / 2:
            await self._claims.renew(stand)
        return not stand.is_lost

    async def ended(self, answer: ResultBuffer) -> None:
        """Keep what came of it, or what is known of it; let go of what cost nothing."""
        # First, so that no renewal makes it anew.
        self._renewing.cancel()
        purchase = answer.purchase
        if purchase is None or (answer.error is not None and answer.verdict is Verdict.NONE):
            await self._claims.release(self._stand)
        else:
            # Where Redis is away the claim runs out, and the journal has the word.
            with suppress(ClaimsUnavailable):
                await self._keep(answer, purchase)

    async def _keep(self, answer: ResultBuffer, purchase: Purchase) -> None:
        seals, stand = self._seals, self._stand
        body = None
        if answer.head is not None and answer.readable and answer.size <= self._most_bytes:
            body = await _bytes_of(answer)
        facts = serialize(answer, purchase, is_kept=body is not None)
        await self._claims.end(
            stand,
            seals.close(_part(stand.id, b"facts"), facts, stand.names.mark),
            b"" if body is None else seals.close(_part(stand.id, b"body"), body, stand.names.mark),
            self._keep_s,
        )

    async def _keep_renewing(self) -> None:
        while not self._stand.is_lost:
            # One that was missed is made up for by the next; two fit into a lease.
            await asyncio.sleep(self._claims.lease_s / 3)
            await self._claims.renew(self._stand)


async def _bytes_of(answer: ResultBuffer) -> bytes:
    blocks: list[bytes] = []
    try:
        async for block in answer.chunks():
            blocks.append(block)  # noqa: PERF401 - what came before an error is kept
    except Exception as error:
        # What cut it short comes after its bytes.
        if error is not answer.error:
            raise
    return b"".join(blocks)


def _part(claim_id: bytes, what: bytes) -> bytes:
    return claim_id + b" " + what
