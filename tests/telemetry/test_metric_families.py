"""The counters and histograms without locks count like those of the client library."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from lcp_gateway.telemetry.metric_families import LoopCounter, LoopHistogram

BUCKETS = (0.1, 0.5, 1.0, 2.5)
AMOUNTS = st.lists(st.floats(0, 4) | st.sampled_from([0.0, *BUCKETS, 1e12, float("inf")]))


def exposed(counter_kind, histogram_kind, amounts):
    registry = CollectorRegistry()
    counter = counter_kind("requests", "Requests", ["model"], registry=registry).labels("llama")
    histogram = histogram_kind("seconds", "Time", buckets=BUCKETS, registry=registry)
    for amount in amounts:
        counter.inc(amount)
        histogram.observe(amount)
    lines = generate_latest(registry).splitlines()
    return [line for line in lines if b"_created" not in line]


@given(AMOUNTS)
def test_the_same_is_exposed_whatever_is_counted(amounts):
    assert exposed(LoopCounter, LoopHistogram, amounts) == exposed(Counter, Histogram, amounts)


def test_amounts_that_are_no_numbers_are_counted_as_before():
    nan = [float("nan"), 1.0]
    assert exposed(LoopCounter, LoopHistogram, nan) == exposed(Counter, Histogram, nan)


def test_a_counter_never_goes_down():
    with pytest.raises(ValueError, match="non-negative"):
        LoopCounter("requests", "Requests", registry=CollectorRegistry()).inc(-1)
