"""Trust in peers: how much may be at risk with each, by its paid and delivered purchases; and when it is paused."""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, NamedTuple

from lcp_gateway.constants import NODE_PREFIX, PPM
from lcp_gateway.purchase.errors import PeerNotTrusted
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.breaker import Breaker

RESERVED_S = 30.0
"""How long a price that passed the check is held while its payment has not begun."""

LOSS_WEIGHT = 10
"""How many delivered msat one lost msat outweighs."""

LOSSES_COUNT_FOR: Final = timedelta(days=7)
"""How far back the losses of a ``PeerHistory`` go."""

_EXPOSED_FOR_S = 0.1
_MICROS = 1_000_000
_DAY_MICROS = 86_400 * _MICROS


@dataclass(frozen=True, slots=True)
class TrustRules:
    """How much a peer is trusted with, and when it is paused.

    At most ``exposure_base_msat`` and ``exposure_share_ppm`` of what a peer has delivered may be at risk with it; a
    base of 0 sets no limit. At most ``exposure_unproven_msat`` may be at risk with all peers together that have not
    delivered a base yet; 0 sets no limit. After ``breaker_failures`` failures in a row a peer is paused for
    ``breaker_pause_s``; 0 failures turns that off.
    """

    exposure_base_msat: int = 2_000_000
    exposure_share_ppm: int = 500_000
    exposure_unproven_msat: int = 0
    breaker_failures: int = 5
    breaker_pause_s: float = 30.0


@dataclass(frozen=True, slots=True)
class PeerHistory:
    """The journal's record of a peer; amounts with or without fees, which makes little difference here.

    ``undelivered_msat`` counts as lost just now, so it is best taken over the last week only; the deliveries over all
    time. ``lost_today_msat`` is the part of it that was lost within a day. ``unknown`` is each job of which it is not known whether it was paid, with its price. ``failures`` is how many of
    the last purchases in a row were paid and not delivered.
    """

    peer_id: str
    delivered_msat: int = 0
    delivered_count: int = 0
    undelivered_msat: int = 0
    unknown: Mapping[bytes, int] = field(default_factory=dict)
    failures: int = 0
    lost_today_msat: int = 0


@dataclass(frozen=True, slots=True)
class TrustStatus:
    """The status of a peer. ``limit_msat`` is None where there is no limit, ``resting_s`` 0 where it is not paused.

    ``out_msat`` is reserved, being paid or unknown; ``undelivered_msat`` was lost to it and is not yet forgiven.
    """

    delivered_msat: Msat
    delivered_count: int
    out_msat: Msat
    undelivered_msat: Msat
    limit_msat: Msat | None
    resting_s: float
    on_trial: bool


class TrustEvent(NamedTuple):
    """Something that one worker of a gateway has learnt about a peer. ``what`` is the method that the others call for it."""

    what: str
    peer_id: str
    job_id: str = ""
    price_msat: int = 0
    state: str = ""


class Allowance(NamedTuple):
    """What may be out with a peer now, and with all unproven peers where it is one of them; None where there is no limit."""

    peer_msat: int | None
    strangers_msat: int | None


@dataclass(slots=True)
class _Account:
    breaker: Breaker
    limited: bool = True
    delivered_msat: int = 0
    delivered_count: int = 0
    lost_msat: int = 0
    lost_at: float = 0.0
    out_msat: int = 0
    _jobs: dict[bytes, int] = field(default_factory=dict)
    _lapse_at: dict[bytes, float] = field(default_factory=dict)

    def put(self, job_id: bytes, price_msat: int, lapse_at: float | None = None) -> None:
        self.out_msat += price_msat - self._jobs.get(job_id, 0)
        self._jobs[job_id] = price_msat
        self._lapse_at.pop(job_id, None)
        if lapse_at is not None:
            self._lapse_at[job_id] = lapse_at

    def take(self, job_id: bytes) -> None:
        self.out_msat -= self._jobs.pop(job_id, 0)
        self._lapse_at.pop(job_id, None)

    def jobs(self) -> Iterable[tuple[bytes, int]]:
        return self._jobs.items()

    def out_without(self, job_id: bytes) -> int:
        return self.out_msat - self._jobs.get(job_id, 0)

    def drop_lapsed(self, now: float) -> None:
        # They lapse in the order in which they were made, which is the dict's.
        while self._lapse_at:
            job_id, lapse_at = next(iter(self._lapse_at.items()))
            if now < lapse_at:
                return
            self.take(job_id)


class PeerTrust:
    """Keeps the trust in peers; implements ``Exposure`` of purchase/ports. No I/O, one thread, deterministic with its clock.

    **Exposure.** The amounts at risk with a peer (prices that passed the check and are not yet paid, are being paid, or
    are unknown) and its losses must, with the new price, stay within a limit: the base, and a share of its deliveries.
    One lost msat outweighs ten delivered ones, so that deliveries work a loss off slowly: a peer that keeps more than
    about a tenth of its money falls back to the base and is soon cut off. Time works it off as well: each day one base
    is forgiven, so that a peer that only takes can take one base at once, and then one a day.

    **Unproven peers together.** A peer that has not delivered a base more than its losses outweigh is unproven. The
    amounts at risk with all of them and their losses stay within one limit, and a day forgives losses of that limit:
    twenty unknown peers can take no more than one of them could.

    **Breaker.** A peer that fails several times in a row, by not quoting or by not delivering what was paid for, is
    paused for a while, and then tried with one job at a time: see ``Breaker``. A purchase whose payment is unknown
    counts as a failure only once the payment is known, and never if nothing was paid.

    ``clock`` is a monotonic clock in seconds.
    """

    def __init__(self, rules: TrustRules, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._accounts: dict[str, _Account] = {}
        # Losses to peers that were unproven.
        self._strangers_lost_msat = 0
        self._strangers_lost_at = 0.0
        # The amounts at risk with and lost to them when last added up; a payment is checked exactly.
        self._exposed_msat = 0
        self._exposed_at = -math.inf
        self.on_event: Callable[[TrustEvent], None] | None = None
        """Gets what this process learns, where several are one gateway; ``learn`` takes it at the others."""
        self.on_paid_elsewhere: Callable[[bytes], None] = lambda _job_id: None
        """Gets the jobs that others are about to pay for."""

    def load(self, histories: Iterable[PeerHistory]) -> None:
        """Load the histories in the journal; once, before the first purchase."""
        now = self._clock()
        for history in histories:
            account = self._account(history.peer_id)
            account.delivered_msat = history.delivered_msat
            account.delivered_count = history.delivered_count
            account.lost_msat, account.lost_at = history.undelivered_msat, now
            for job_id, price_msat in history.unknown.items():
                account.put(job_id, price_msat)
            if history.failures:
                account.breaker.failed_to_deliver(now, history.failures)
            _, _, is_unproven = self._limits(account, now)
            if is_unproven:
                self._lose_to_strangers(history.lost_today_msat, now)

    def use(self, rules: TrustRules) -> None:
        """Apply other rules from now on; the state of the peers stays."""
        now = self._clock()
        self._lose_to_strangers(0, now)
        for account in self._accounts.values():
            # Losses that the old rules have forgiven stay forgiven.
            account.lost_msat, account.lost_at = self._lost_msat(account, now), now
            account.breaker.use(rules.breaker_failures, rules.breaker_pause_s)
        self._rules = rules

    # -- several processes that are one gateway -------------------------------------------------

    def learn(self, event: TrustEvent) -> None:
        """Take in what another process has learnt."""
        tell, self.on_event = self.on_event, None
        try:
            match event.what:
                case "failed_to_quote":
                    self.failed_to_quote(event.peer_id)
                case "quoted":
                    self.quoted(event.peer_id)
                case "hold":
                    account, job_id = self._account(event.peer_id), bytes.fromhex(event.job_id)
                    self._hold(account, job_id, event.price_msat, self._clock())
                case "paying":
                    self._pay(event.peer_id, bytes.fromhex(event.job_id), event.price_msat)
                    self.on_paid_elsewhere(bytes.fromhex(event.job_id))
                case "released":
                    self._release(event.peer_id, bytes.fromhex(event.job_id))
                case "resolved":
                    job_id, state = bytes.fromhex(event.job_id), State(event.state)
                    self.resolved(event.peer_id, job_id, event.price_msat, state)
        finally:
            self.on_event = tell

    def allowance(self, peer_id: str) -> Allowance:
        """Return what may be out with a peer, losses taken off; changes nothing."""
        account = self._accounts.get(peer_id) or self._new_account(peer_id)
        now = self._clock()
        limit_msat, lost_msat, is_unproven = self._limits(account, now)
        peer_msat = None if limit_msat is None else max(0, limit_msat - lost_msat)
        strangers_msat = self._rules.exposure_unproven_msat
        if not strangers_msat or not is_unproven:
            return Allowance(peer_msat, None)
        return Allowance(peer_msat, max(0, strangers_msat - self._lost_to_strangers_msat(now)))

    def unknown_jobs(self) -> Iterable[tuple[str, bytes, int]]:
        """Yield the peer, the job and the price of all that is out."""
        for peer_id, account in self._accounts.items():
            for job_id, price_msat in account.jobs():
                yield peer_id, job_id, price_msat

    def _tell(self, what: str, peer_id: str, job_id: bytes = b"", price_msat: int = 0, state: str = "") -> None:
        if self.on_event is not None:
            self.on_event(TrustEvent(what, peer_id, job_id.hex(), price_msat, str(state)))

    # -- before a quote -------------------------------------------------------------------------

    def available(self, peer_id: str) -> bool:
        """Ask whether a peer may be asked for a quote now.

        A peer that is tried after a pause is given to one asker at a time, so ask only for peers that are meant to be
        asked: an unused permission holds others back for ``breaker.TRIAL_S`` seconds.
        """
        account = self._accounts.get(peer_id) or self._new_account(peer_id)
        now = self._clock()
        return not self._is_full(account, now) and account.breaker.ask(now)

    def readiness(self, peer_id: str) -> float:
        """Return how ready a peer is to be asked: 0 not now, 1 at once, a half when it is on trial. Changes nothing."""
        account = self._accounts.get(peer_id) or self._new_account(peer_id)
        now = self._clock()
        if account.breaker.resting_s(now):
            return 0.0
        if self._is_full(account, now):
            return 0.0
        return 0.5 if account.breaker.is_on_trial(now) else 1.0

    def quoted(self, peer_id: str) -> None:
        """Record a good quote: earlier failures to quote are forgotten."""
        if account := self._accounts.get(peer_id):
            if account.breaker.has_failed:
                self._tell("quoted", peer_id)
            account.breaker.quoted()

    def failed_to_quote(self, peer_id: str) -> None:
        """Record that a peer gave no quote, or a false one. Only where the peer is at fault, not the request."""
        self._account(peer_id).breaker.failed_to_quote(self._clock())
        self._tell("failed_to_quote", peer_id)

    def weigh(self, quote: Quote) -> None:
        """Check as ``check`` does, and hold nothing: for quotes that may not be taken.

        Raises:
            PeerNotTrusted: as in ``check``.
        """
        self._weigh(self._account(quote.peer_id), quote)

    # -- a purchase -----------------------------------------------------------------------------

    def check(self, quote: Quote) -> None:
        """Let a quote pass, and hold its price until ``paying`` or ``ended``, or for ``RESERVED_S`` seconds.

        Held, because others may be checked between this and the payment. A quote may be checked again.

        Raises:
            PeerNotTrusted: its peer has not delivered enough for this price, or is paused for now.
        """
        account = self._account(quote.peer_id)
        now = self._weigh(account, quote)
        self._hold(account, quote.job_id, quote.price_msat, now)
        self._tell("hold", quote.peer_id, quote.job_id, quote.price_msat)

    def _hold(self, account: _Account, job_id: bytes, price_msat: int, now: float) -> None:
        account.breaker.hold(job_id, now)
        account.put(job_id, price_msat, now + RESERVED_S)

    def _weigh(self, account: _Account, quote: Quote) -> float:
        """Raise unless a quote may be taken now; return the time for which this holds."""
        now = self._clock()
        account.drop_lapsed(now)
        limit_msat, lost_msat, is_unproven = self._limits(account, now)
        if limit_msat is not None:
            out_msat = account.out_without(quote.job_id)
            if out_msat + lost_msat + quote.price_msat > limit_msat:
                raise PeerNotTrusted(
                    f"the peer is trusted with {limit_msat} msat until it has delivered more; "
                    f"{out_msat} msat are out with it, {lost_msat} msat were paid and not delivered, "
                    f"and the quote asks {quote.price_msat} msat; nothing was paid",
                    quote=quote,
                )
        if is_unproven and self._rules.exposure_unproven_msat:
            self._weigh_strangers(quote, now)
        if not account.breaker.would_pay(quote.job_id, now):
            raise PeerNotTrusted(
                "the peer failed several times in a row and is paused for now; nothing was paid", quote=quote
            )
        return now

    def _weigh_strangers(self, quote: Quote, now: float) -> None:
        limit_msat = self._rules.exposure_unproven_msat
        exposed_msat = self._exposed_to_strangers_msat(now, without=quote.job_id)
        if exposed_msat + quote.price_msat > limit_msat:
            raise PeerNotTrusted(
                f"all peers that have not proven themselves are trusted with {limit_msat} msat together; "
                f"{exposed_msat} msat are out with them or were lost to them, and the quote asks "
                f"{quote.price_msat} msat; nothing was paid",
                quote=quote,
            )

    def paying(self, quote: Quote) -> None:
        """Record that a payment is about to go out."""
        self._pay(quote.peer_id, quote.job_id, quote.price_msat)
        self._tell("paying", quote.peer_id, quote.job_id, quote.price_msat)

    def _pay(self, peer_id: str, job_id: bytes, price_msat: int) -> None:
        account = self._account(peer_id)
        account.put(job_id, price_msat)
        account.breaker.paying(job_id)

    def ended(self, quote: Quote, state: State) -> None:
        """Record the outcome of a purchase; see ``resolved``."""
        self.resolved(quote.peer_id, quote.job_id, quote.price_msat, state)

    def released(self, quote: Quote) -> None:
        """Release the price held of a purchase whose client left; it counts neither for the peer nor against it."""
        self._release(quote.peer_id, quote.job_id)
        self._tell("released", quote.peer_id, quote.job_id)

    def _release(self, peer_id: str, job_id: bytes) -> None:
        account = self._account(peer_id)
        account.take(job_id)
        account.breaker.ended(job_id)

    def resolved(self, peer_id: str, job_id: bytes, price_msat: int, state: State) -> None:
        """Record the outcome of a purchase, once for each state; also that of an unknown one.

        ``settled`` is an unknown that turned out to be paid: nothing was delivered for it. States before a payment
        (``refused``, ``expired``) and ``not_paid`` release the held price.
        """
        self._tell("resolved", peer_id, job_id, price_msat, state)
        account = self._account(peer_id)
        now = self._clock()
        account.take(job_id)
        account.breaker.ended(job_id)
        match state:
            case State.DELIVERED:
                account.delivered_msat += price_msat
                account.delivered_count += 1
                account.breaker.delivered()
            case State.UNDELIVERED | State.SETTLED:
                _, lost_msat, is_unproven = self._limits(account, now)
                if is_unproven:
                    self._lose_to_strangers(price_msat, now)
                account.lost_msat = lost_msat + price_msat
                account.lost_at = now
                account.breaker.failed_to_deliver(now)
            case State.UNKNOWN | State.PAYING:
                account.put(job_id, price_msat)
            case _:
                pass

    # -- status --------------------------------------------------------------------------

    def peers(self) -> tuple[str, ...]:
        """Return the peers of which anything is known."""
        return tuple(self._accounts)

    def standing(self, peer_id: str) -> TrustStatus:
        """Return the status of a peer; changes nothing."""
        account = self._accounts.get(peer_id) or self._new_account(peer_id)
        now = self._clock()
        account.drop_lapsed(now)
        limit_msat, lost_msat, _ = self._limits(account, now)
        return TrustStatus(
            delivered_msat=Msat(account.delivered_msat),
            delivered_count=account.delivered_count,
            out_msat=Msat(account.out_msat),
            undelivered_msat=Msat(lost_msat),
            limit_msat=None if limit_msat is None else Msat(limit_msat),
            resting_s=account.breaker.resting_s(now),
            on_trial=account.breaker.is_on_trial(now),
        )

    def _limits(self, account: _Account, now: float) -> tuple[int | None, int, bool]:
        """Return the limit of what may be at risk with a peer, what it has lost of that, and whether it is unproven."""
        lost_msat = self._lost_msat(account, now) if account.lost_msat else 0
        rules = self._rules
        base_msat = rules.exposure_base_msat
        if not (base_msat and account.limited):
            return None, lost_msat, False
        earned_msat = max(0, account.delivered_msat - LOSS_WEIGHT * lost_msat)
        return base_msat + earned_msat * rules.exposure_share_ppm // PPM, lost_msat, earned_msat < base_msat

    def _is_full(self, account: _Account, now: float) -> bool:
        """Return whether as much is at risk with a peer, or with all unproven ones, as may be."""
        account.drop_lapsed(now)
        limit_msat, lost_msat, is_unproven = self._limits(account, now)
        if limit_msat is None:
            return False
        return account.out_msat + lost_msat >= limit_msat or (is_unproven and self._strangers_are_full(now))

    def _strangers_are_full(self, now: float) -> bool:
        limit_msat = self._rules.exposure_unproven_msat
        if not limit_msat:
            return False
        # Asked for every provider of a choice, and for every model of a list: added up again only from time to time.
        if not 0 <= now - self._exposed_at < _EXPOSED_FOR_S:
            self._exposed_msat, self._exposed_at = self._exposed_to_strangers_msat(now), now
        return self._exposed_msat >= limit_msat

    def _exposed_to_strangers_msat(self, now: float, *, without: bytes = b"") -> int:
        exposed_msat = self._lost_to_strangers_msat(now)
        for account in self._accounts.values():
            if account.out_msat:
                _, _, is_unproven = self._limits(account, now)
                if is_unproven:
                    account.drop_lapsed(now)
                    exposed_msat += account.out_without(without)
        return exposed_msat

    def _lose_to_strangers(self, amount_msat: int, now: float) -> None:
        self._strangers_lost_msat = self._lost_to_strangers_msat(now) + amount_msat
        self._strangers_lost_at = now

    def _lost_to_strangers_msat(self, now: float) -> int:
        if not self._strangers_lost_msat:
            return 0
        elapsed_micros = int((now - self._strangers_lost_at) * _MICROS)
        forgiven_msat = elapsed_micros * self._rules.exposure_unproven_msat // _DAY_MICROS
        return max(0, self._strangers_lost_msat - forgiven_msat)

    def _lost_msat(self, account: _Account, now: float) -> int:
        elapsed_micros = int((now - account.lost_at) * _MICROS)
        forgiven_msat = elapsed_micros * self._rules.exposure_base_msat // _DAY_MICROS
        return max(0, account.lost_msat - forgiven_msat)

    def _account(self, peer_id: str) -> _Account:
        account = self._accounts.get(peer_id)
        if account is None:
            account = self._accounts[peer_id] = self._new_account(peer_id)
        return account

    def _new_account(self, peer_id: str) -> _Account:
        breaker = Breaker(self._rules.breaker_failures, self._rules.breaker_pause_s)
        # The operator chose the nodes, and nothing is paid to them in advance.
        return _Account(breaker, limited=not peer_id.startswith(NODE_PREFIX))
