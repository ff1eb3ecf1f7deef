"""The metrics of a gateway that sells: what customers have, what they paid in, what they were charged."""

from collections.abc import Callable

from lcp_gateway.telemetry.metric_families import ABSENT, Families
from lcp_gateway.telemetry.metric_table import OTHER, REFUNDS


class SellingMetrics:
    """The part of ``Metrics`` that counts accounts. No method raises."""

    def __init__(self, families: Families) -> None:
        self._selling = families
        for name in (
            "customers",
            "customers_balance_msat",
            "customers_held_msat",
            "keys_age_seconds",
            "keys_stale",
            "settlements_leader",
            "refunds_withheld",
            "refunds_withheld_msat",
        ):
            families.gauges[name].set(ABSENT)
        for refund in (*REFUNDS, OTHER):
            families.counters["refunds_total"].labels(refund)
            families.counters["refunds_msat_total"].labels(refund)

    def customers(self, accounts: int, balance_msat: int, held_msat: int) -> None:
        """Note what all customers have together."""
        gauges = self._selling.gauges
        gauges["customers"].set(accounts)
        gauges["customers_balance_msat"].set(balance_msat)
        gauges["customers_held_msat"].set(held_msat)

    def watch_keys(self, age_s: Callable[[], float], is_stale: Callable[[], bool]) -> None:
        """Have these asked at each scrape."""
        gauges = self._selling.gauges
        gauges["keys_age_seconds"].set_function(age_s)
        gauges["keys_stale"].set_function(is_stale)

    def topup(self, received_msat: int) -> None:
        """Count a top-up that was credited."""
        self._selling.counters["topups_total"].inc()
        self._selling.counters["topups_msat_total"].inc(received_msat)

    def charged(self, msat: int) -> None:
        """Count what a customer was charged for a purchase that came to its end."""
        self._selling.counters["charged_msat_total"].inc(msat)

    def refund(self, refund: str, amount_msat: int) -> None:
        """Count a charge that was to be given back: ``given``, ``withheld``, ``granted`` or ``denied``."""
        label = refund if refund in REFUNDS else OTHER
        self._selling.counters["refunds_total"].labels(label).inc()
        self._selling.counters["refunds_msat_total"].labels(label).inc(amount_msat)

    def refunds_withheld(self, count: int, amount_msat: int) -> None:
        """Note the charges that wait for the operator's decision."""
        self._selling.gauges["refunds_withheld"].set(count)
        self._selling.gauges["refunds_withheld_msat"].set(amount_msat)

    def settlements_leader(self, leads: bool) -> None:
        """Note whether this gateway follows the settlements."""
        self._selling.gauges["settlements_leader"].set(1 if leads else 0)
