"""Metrics of accounts: none without accounts; with them, customers' balances, top-ups and charges."""

import pytest

from lcp_gateway.telemetry.metric_table import PREFIX
from lcp_gateway.telemetry.metrics import Metrics


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def value(metrics):
    def read(name):
        return metrics.registry.get_sample_value(PREFIX + name)

    return read


@pytest.mark.parametrize("name", ["customers", "customers_balance_msat", "customers_held_msat", "settlements_leader"])
def test_a_gateway_without_accounts_exposes_no_metric_of_customers(metrics, name):
    lines = metrics.render()[0].decode().splitlines()
    assert not [line for line in lines if line.startswith((f"{PREFIX}{name} ", f"{PREFIX}{name}{{"))]


def test_customers_balances_are_current(metrics, value):
    metrics.customers(3, 5_000, 1_000)
    metrics.customers(2, 21_000_000 * 100_000_000 * 1_000, 0)
    assert value("customers") == 2
    assert value("customers_balance_msat") == 2.1e18
    assert value("customers_held_msat") == 0


def test_topups_and_charges_begin_at_nothing_and_add_up(metrics, value):
    counters = ("topups_total", "topups_msat_total", "charged_msat_total")
    assert [value(name) for name in counters] == [0, 0, 0]
    metrics.topup(300_000)
    metrics.topup(1)
    metrics.charged(3_700)
    assert [value(name) for name in counters] == [2, 300_001, 3_700]


def test_a_gateway_that_may_follow_says_whether_it_does(metrics, value):
    metrics.settlements_leader(True)
    assert value("settlements_leader") == 1
    metrics.settlements_leader(False)
    assert value("settlements_leader") == 0
