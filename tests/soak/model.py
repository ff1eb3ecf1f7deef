"""The reference model: it derives each purchase's charge from the customers' results and the wallet's events.

It knows nothing of the gateway but its documented rules: what was paid and came in full is charged; what was not paid is
not; what was paid and did not come in full is not, unless its customer left. What had come in full when the gateway was
killed, and was not yet on disk as delivered, is not charged either (docs/money.md): these are counted, and nothing else
may be free.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tests.soak.books import Books, Bought
from tests.soak.customers import NEVER_WHOLE, Attempt, Order
from tests.system.selling.seller import MARKUP


@dataclass
class Facts:
    """Observations from outside the gateway. ``at_kill`` is the state of each job in the journal when its gateway was killed."""

    orders: Sequence[Order]
    events: Sequence[dict]
    revoked_at: Mapping[str, datetime]
    at_kill: Mapping[str, str]
    filled_msat: int


@dataclass
class Verdict:
    """The comparison's result: ``counts`` of each kind, and a sentence for each discrepancy."""

    counts: Counter = field(default_factory=Counter)
    discrepancies: list[str] = field(default_factory=list)


def compare(facts: Facts, books: Books) -> Verdict:
    """Compare the books with the model."""
    verdict = Verdict()
    wallet = _wallet(facts, verdict)
    jobs_of = defaultdict(list)
    for bought in books.purchases.values():
        jobs_of[bought.body_sha256].append(bought)
    owed: dict[str, int] = defaultdict(int)
    for order in facts.orders:
        verdict.counts["orders"] += 1
        found = jobs_of.pop(order.body_sha256, [])
        _check_order(order, found, wallet, verdict)
        for bought in found:
            charge_msat = _charge(facts, order, bought, wallet[bought.job_id], verdict)
            owed[order.account_id] += charge_msat
            taken_msat = books.taken.get(bought.job_id, 0)
            if taken_msat != charge_msat:
                verdict.discrepancies.append(
                    f"{_named(bought)} took {taken_msat} msat, the model says {charge_msat} msat; "
                    f"at the kill {facts.at_kill.get(bought.job_id)}; {_told(order)}"
                )
            verdict.counts["charged_msat"] += charge_msat
            verdict.counts["charged"] += charge_msat > 0
    for strangers in jobs_of.values():
        verdict.discrepancies += [f"{_named(bought)} was ordered by no one" for bought in strangers]
    for job_id in wallet:
        if job_id not in books.purchases:
            verdict.discrepancies.append(f"job {job_id} was accepted and is not in the journal")
    _check_books(facts, books, owed, verdict)
    return verdict


def _wallet(facts: Facts, verdict: Verdict) -> dict[str, str]:
    """Return the wallet's payment state of each job: accepted, paid (and still held), settled or unpaid."""
    accepts: Counter = Counter()
    paid: Counter = Counter()
    did: dict[str, str] = defaultdict(str)
    for event in facts.events:
        job_id, kind = event["job_id"], event["kind"]
        if kind == "accept":
            accepts[job_id] += 1
            did[job_id] = did[job_id] or "accepted"
        elif kind in {"paid", "settled", "unpaid"}:
            paid[job_id] += kind == "paid"
            did[job_id] = kind
        verdict.counts[f"node: {kind}"] += 1
    for name, times in (("accepted", accepts), ("paid", paid)):
        for job_id, number in times.items():
            if number > 1:
                verdict.discrepancies.append(f"job {job_id} was {name} {number} times")
    return did


def _check_order(order: Order, found: Sequence[Bought], wallet: Mapping[str, str], verdict: Verdict) -> None:
    """Check that an order was paid at most once, however often it was requested."""
    settled = [bought for bought in found if wallet[bought.job_id] == "settled"]
    if len(settled) > 1:
        verdict.discrepancies.append(f"paid {len(settled)} times: {[_named(it) for it in settled]}")
    if order.repeat_key and len(order.attempts) > 1:
        verdict.counts["repeated"] += 1
        verdict.counts["requests of repeated orders"] += len(order.attempts)
        verdict.counts["payments of repeated orders"] += len(settled)
    known = {bought.job_id for bought in found}
    for attempt in order.attempts:
        if attempt.verdict == "settled" and attempt.job_id not in known:
            verdict.discrepancies.append(f"a client got the job {attempt.job_id}, which is not in the journal")
        if attempt.verdict == "none" and wallet.get(attempt.job_id) == "settled":
            verdict.discrepancies.append(f"a client got `none` for {attempt.job_id}, which was paid")
        if attempt.verdict == "settled" and wallet.get(attempt.job_id) in {"unpaid", ""}:
            verdict.discrepancies.append(f"a client got `settled` for {attempt.job_id}, which was not paid")
        if attempt.complete and order.model in NEVER_WHOLE:
            verdict.discrepancies.append(f"{order.model} passed for whole: {attempt.job_id}")
        if order.with_revoked_key and attempt.status not in {0, 401}:
            verdict.discrepancies.append(f"a revoked key was answered {attempt.status}")


def _charge(facts: Facts, order: Order, bought: Bought, did: str, verdict: Verdict) -> int:
    """Return the charge that a purchase must have."""
    counts = verdict.counts
    revoked_at = facts.revoked_at.get(bought.key_id)
    if revoked_at is not None and bought.paying_at > revoked_at:
        verdict.discrepancies.append(f"{_named(bought)} was bought after its key was revoked")
    if did != "settled":
        counts["not paid"] += 1
        if bought.state != "not_paid":
            verdict.discrepancies.append(f"{_named(bought)} was not paid: {did or 'never asked'}")
        return 0
    counts["paid"] += 1
    full_msat = MARKUP.charge_msat(bought.price_msat)
    if bought.state not in {"delivered", "undelivered"}:
        verdict.discrepancies.append(f"{_named(bought)} was paid and has not ended")
    complete = _is_complete(order.attempts, bought.job_id)
    if complete:
        counts["delivered in full"] += 1
        lost = facts.at_kill.get(bought.job_id) in {"paying", "settled"}
        if bought.state == "undelivered" and bought.ended_by in {"operator", "unknown"} and lost:
            counts["delivered in full, not on disk as delivered when killed, free"] += 1
            return 0
        return full_msat
    counts["not delivered in full"] += 1
    if any(attempt.left for attempt in order.attempts):
        # Its customer closed the connection. What was not ended by a kill is charged, as the table of endings says.
        counts["left by its customer"] += 1
        ended_by_kill = bought.ended_by in {"operator", "unknown"}
        spoilt = bought.received in {"altered", "error", "empty"}
        by_provider = bought.ended_by == "provider"
        if bought.state == "undelivered" and (ended_by_kill or spoilt or by_provider):
            counts["left by its customer, given back"] += 1
            return 0
        return full_msat
    counts["given back"] += 1
    return 0


def _is_complete(attempts: Sequence[Attempt], job_id: str) -> bool:
    return any(attempt.complete and attempt.job_id == job_id for attempt in attempts)


def _check_books(facts: Facts, books: Books, owed: Mapping[str, int], verdict: Verdict) -> None:
    verdict.discrepancies += [f"audit: {problem}" for problem in books.audit_problems]
    for account_id, (balance_msat, held_msat) in books.balances.items():
        expected_msat = facts.filled_msat - owed[account_id]
        if (balance_msat, held_msat) != (expected_msat, 0):
            verdict.discrepancies.append(
                f"{account_id} has {balance_msat} msat and {held_msat} msat held, "
                f"the model says {expected_msat} msat and none held"
            )
        if books.adjusted[account_id] != facts.filled_msat:
            verdict.discrepancies.append(f"{account_id} was filled with other than it was")
    spent_msat = sum(it.counted_msat for it in books.purchases.values() if it.state != "not_paid")
    if spent_msat != books.counted_msat:
        verdict.discrepancies.append(
            f"the budget counts {books.counted_msat} msat, the purchases sum to {spent_msat} msat"
        )


def _named(bought: Bought) -> str:
    ended = f", ended by {bought.ended_by}, received {bought.received}" if bought.ended_by else ""
    return f"{bought.job_id[:16]} ({bought.model}, {bought.state}{ended})"


def _told(order: Order) -> str:
    how = "streamed" if order.stream else "in one piece"
    return f"{order.path}, {how}, {order.pace}, {order.attempts}"
