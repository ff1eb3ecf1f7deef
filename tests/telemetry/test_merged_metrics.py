"""Metrics of several workers: counters are summed and never fall, gauges become one by a rule, exemplars stay."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.telemetry.merged_metrics import ACROSS, Family, WorkerCounts
from lcp_gateway.telemetry.metric_families import snapshot_of
from lcp_gateway.telemetry.metric_table import SPECS, MetricKind
from lcp_gateway.telemetry.metrics import Metrics

KEY = ("paid_total", (("peer", "a"),))


def counter(value):
    return {"paid": Family("paid", "counter", "", {KEY: value})}


def gauge(name, value):
    return {name: Family(name, "gauge", "", {(name, ()): value})}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 50), st.booleans()), max_size=60))
@settings(deadline=None)
def test_a_sum_never_falls_and_is_that_of_every_process_that_was_seen(steps):
    counts, process, value, seen = WorkerCounts(), [0, 1, 2, 3], [0, 0, 0, 0], 0
    following, last = 4, 0.0
    for place, more, dies in steps:
        value[place] += more
        seen += more
        counts.update(process[place], counter(float(value[place])))
        if dies:
            counts.retire(process[place])
            process[place], following, value[place] = following, following + 1, 0
        total = counts.merged()["paid"].samples[KEY]
        assert total == seen
        assert total >= last
        last = total


def test_gauges_become_one_by_their_rule_and_end_with_their_worker():
    counts = WorkerCounts()
    for process, jobs, up, age, speed in ((1, 3.0, 1.0, 5.0, 2.0), (2, 4.0, 0.0, 7.0, 4.0)):
        counts.update(
            process,
            {
                **gauge("lcpgateway_jobs_in_flight", jobs),
                **gauge("lcpgateway_daemon_up", up),
                **gauge("lcpgateway_snapshot_age_seconds", age),
                **gauge("lcpgateway_provider_tokens_per_second", speed),
            },
        )
    assert [*(value for family in counts.merged().values() for value in family.samples.values())] == [
        7.0,
        0.0,
        7.0,
        3.0,
    ]
    counts.retire(2)
    assert [*(value for family in counts.merged().values() for value in family.samples.values())] == [
        3.0,
        1.0,
        5.0,
        2.0,
    ]


def test_every_rule_names_a_gauge_that_exists():
    own = {spec.full_name for spec in SPECS if spec.kind is MetricKind.GAUGE}
    assert {name for name in ACROSS if name.startswith("lcpgateway_")} <= own


def test_what_is_merged_reads_like_one_process():
    first, second = Metrics(), Metrics()
    second.exemplar = lambda: {"trace_id": "abc"}
    for metrics in (first, second):
        metrics.set_known(["m"], ["p"])
        metrics.quote("p", "m", 0.002, 1_000)
        metrics.payment("settled", "p", "m", 1_000)
    counts = WorkerCounts()
    counts.update(1, snapshot_of(first.registry))
    counts.update(2, snapshot_of(second.registry))
    text, _ = first.render("application/openmetrics-text; version=1.0.0", counts.merged())
    assert b'lcpgateway_payment_msat_total{outcome="settled",peer="p"} 2000.0' in text
    assert b'lcpgateway_quote_duration_seconds_count{peer="p"} 2.0' in text
    assert b'# {trace_id="abc"}' in text
    assert text.endswith(b"# EOF\n")
