"""The status of a gateway, for people and as JSON."""

from datetime import UTC, datetime, timedelta

import pytest

from lcp_gateway.cli.books.spend import SpendTotal
from lcp_gateway.cli.gateway_client import Readiness
from lcp_gateway.cli.service.status import RUNNING, STOPPED, GatewayStatus, _write_duration


def test_a_status_leaves_out_values_that_are_not_known():
    stopped = GatewayStatus(state=STOPPED, url="http://a", now=datetime.now(UTC))
    assert stopped.as_rows() == [("State", "stopped"), ("Address", "http://a")]
    assert stopped.as_json()["ready"] is None
    assert stopped.uptime is None


def test_a_status_has_the_reasons_and_the_spending():
    status = GatewayStatus(
        state=RUNNING,
        url="http://a",
        now=datetime.now(UTC),
        readiness=Readiness(
            ready=False, reasons=("no peers", "old"), peers=0, jobs_in_flight=2, nodes={"a": True, "b": False}
        ),
        spent=SpendTotal(purchases=3, settled_msat=12_500, unknown_msat=1_000),
    )
    rows = dict(status.as_rows())
    assert rows["Ready"] == "no: no peers; old"
    assert rows["Nodes"] == "1 of 2 up"
    assert rows["Spent today"] == "12.500 sat in 3 purchases, and 1.000 sat unknown"
    silent = GatewayStatus(state=RUNNING, url="http://a", now=datetime.now(UTC), spent_problem="it is off")
    assert dict(silent.as_rows())["Ready"] == "no: it does not answer"
    assert dict(silent.as_rows())["Spent today"] == "not known: it is off"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s"), (59, "59 s"), (61, "1 m 1 s"), (3_600, "1 h 0 m"), (90_000, "1 d 1 h"), (-5, "0 s")],
)
def test_a_length_of_time_is_write_duration_with_its_two_largest_units(seconds, words):
    assert _write_duration(timedelta(seconds=seconds)) == words
