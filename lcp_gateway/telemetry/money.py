"""The metrics of the money beyond single payments: what is open, what is left, and how it is written down."""

from collections.abc import Callable, Collection

from lcp_gateway.telemetry.metric_families import ABSENT, Families, KnownLabels
from lcp_gateway.telemetry.metric_table import (
    CHANNEL_STATES,
    MISMATCHES,
    OTHER,
    PERIODS,
    RECONCILED,
    REPEATS,
)

_ABSENT_AT_FIRST = (
    "outstanding_unknown_msat",
    "outstanding_unknown_purchases",
    "oldest_unknown_age_seconds",
    "lnd_up",
    "lnd_synced",
    "lnd_local_balance_msat",
    "lnd_fees_missing",
)


class MoneyMetrics:
    """The part of ``Metrics`` that counts the journal, budgets, repeats, quotes and lnd.

    No method raises, whatever the words and numbers: counting must not stand between a client and what was paid for.
    """

    def __init__(self, families: Families, peers: KnownLabels, clock: Callable[[], float]) -> None:
        self._families = families
        self._peers = peers
        self._clock = clock
        self._undelivered_by_others: dict[str, int] = {}
        self._commit = families.histograms["journal_commit_duration_seconds"].observe
        self._entries = families.counters["journal_entries_total"].inc
        self._start_money_at_zero()

    def _start_money_at_zero(self) -> None:
        counters, gauges = self._families.counters, self._families.gauges
        for name, words in (
            ("joined_total", REPEATS),
            ("reconciled_total", RECONCILED),
        ):
            for word in (*words, OTHER):
                counters[name].labels(word)
        for name in _ABSENT_AT_FIRST:
            gauges[name].set(ABSENT)

    def _start_mismatches_at_zero(self, peer: str) -> None:
        for word in (*MISMATCHES, OTHER):
            self._families.counters["quote_mismatches_total"].labels(word, peer)

    # -- choosing a quote -----------------------------------------------------------------------

    def mismatch(self, peer_id: str, reason: str) -> None:
        """Count a quote that was refused because ``reason`` (a value of ``lightning.checks.Mismatch``) does not fit."""
        word = reason if reason in MISMATCHES else OTHER
        self._families.counters["quote_mismatches_total"].labels(
            word, self._peers.fold(peer_id)
        ).inc()

    def runner_up_saving(self, msat: int) -> None:
        """Count what the quote that is taken saves against the next best; one that is dearer counts as nothing."""
        self._families.counters["runner_up_saving_msat_total"].inc(max(0, msat))

    def joined(self, how: str) -> None:
        """Count a repeat that was not bought again.

        It joined what was ``running``, got its answer ``replayed``, or was told that the answer is ``lost``.
        """
        self._count("joined_total", how, REPEATS)

    # -- the journal ----------------------------------------------------------------------------

    def journal_commit(self, entries: int, seconds: float) -> None:
        """Count a commit of the journal with its entries, and how long it took."""
        self._commit(seconds)
        self._entries(max(0, entries))

    def watch_journal(self, has_trouble: Callable[[], bool]) -> None:
        """Have it asked at each scrape whether the journal cannot be written."""
        self._families.gauges["journal_trouble"].set_function(has_trouble)

    def answers_held(self, bytes_: int) -> None:
        """Note how many bytes of answers are kept."""
        self._families.gauges["answers_held_bytes"].set(bytes_)

    # -- what is open and what is left ----------------------------------------------------------

    def budget(self, period: str, limit_msat: int, spent_msat: int) -> None:
        """Note a budget of the whole gateway in its present period; a limit of 0 takes it off the board."""
        word = period if period in PERIODS else OTHER
        limit, left = (
            self._families.gauges[name].labels(word)
            for name in ("budget_limit_msat", "budget_left_msat")
        )
        limit.set(limit_msat or ABSENT)
        left.set(max(0, limit_msat - spent_msat) if limit_msat else ABSENT)

    def outstanding(self, unknown_msat: int, unknown_count: int, oldest_unknown_s: float) -> None:
        """Note what is unknown by the journal; the age of the oldest is counted on from now until the next note."""
        gauges = self._families.gauges
        gauges["outstanding_unknown_msat"].set(unknown_msat)
        gauges["outstanding_unknown_purchases"].set(unknown_count)
        began = self._clock() - oldest_unknown_s
        gauges["oldest_unknown_age_seconds"].set_function(
            lambda: self._clock() - began if unknown_count else 0.0
        )

    def peer_undelivered_msat(self, peer_id: str, msat: int) -> None:
        """Note what a peer was paid for and did not deliver, over all that the journal holds.

        A peer that the journal names becomes a label like one of the catalog: it is seldom still there.
        """
        self._admit_peers((peer_id,))
        peer = self._peers.fold(peer_id)
        if peer == OTHER:
            self._undelivered_by_others[peer_id] = msat
            msat = sum(self._undelivered_by_others.values())
        self._families.gauges["peer_undelivered_msat"].labels(peer).set(msat)

    def _admit_peers(self, peer_ids: Collection[str]) -> None:
        for peer in self._peers.admit(peer_ids):
            self._start_peer_at_zero(peer)

    def _start_peer_at_zero(self, peer: str) -> None:
        self._start_mismatches_at_zero(peer)

    # -- lnd ------------------------------------------------------------------------------------

    def lnd(
        self, up: bool, synced: bool, local_msat: int, channels_active: int, channels_inactive: int
    ) -> None:
        """Note what lnd says of itself; while it is not ``up`` the other numbers are not exposed."""
        gauges = self._families.gauges
        gauges["lnd_up"].set(1 if up else 0)
        gauges["lnd_synced"].set(int(synced) if up else ABSENT)
        gauges["lnd_local_balance_msat"].set(local_msat if up else ABSENT)
        for state, count in zip(CHANNEL_STATES, (channels_active, channels_inactive), strict=True):
            gauges["lnd_channels"].labels(state).set(count if up else ABSENT)

    def fees_missing(self, purchases: int) -> None:
        """Set how many purchases of the last minutes have no fee yet, although lnd was asked."""
        self._families.gauges["lnd_fees_missing"].set(purchases)

    def reconciled(self, outcome: str) -> None:
        """Count what asking lnd for an unknown payment gave: settled, not_paid, still_unknown or error."""
        self._count("reconciled_total", outcome, RECONCILED)

    def _count(self, name: str, word: str, words: tuple[str, ...]) -> None:
        self._families.counters[name].labels(word if word in words else OTHER).inc()
