import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain

from lcp_gateway.telemetry.metrics import Metrics

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TRACE = {"trace_id": "0af7651916cd43dd8448eb211c80319c"}
LATENCIES = {
    "lcpgateway_request_duration_seconds",
    "lcpgateway_quote_duration_seconds",
    "lcpgateway_execute_duration_seconds",
    "lcpgateway_first_byte_duration_seconds",
}


def observed(exemplar) -> Metrics:
    metrics = Metrics()
    metrics.exemplar = lambda: exemplar
    metrics.request("/v1/chat/completions", "m", 200, "settled", True, 0.2)
    metrics.quote("p", "m", 0.02, 1_000)
    metrics.execute("p", "m", 0.1)
    metrics.first_byte("/v1/chat/completions", "m", 0.15)
    return metrics


def test_each_latency_has_a_trace_in_openmetrics():
    body, content_type = observed(TRACE).render(OPENMETRICS)
    assert content_type.startswith("application/openmetrics-text")
    found = {}
    for family in openmetrics(body.decode()):
        for sample in family.samples:
            if sample.exemplar is not None:
                assert sample.name.endswith("_bucket")
                found[family.name] = (sample.exemplar.labels, sample.exemplar.value)
    assert set(found) == LATENCIES
    assert found["lcpgateway_quote_duration_seconds"] == (TRACE, 0.02)


def test_the_plain_format_is_what_it_was():
    with_trace, without = observed(TRACE).render(""), observed(None).render("")
    assert "trace_id" not in with_trace[0].decode() and with_trace[1] == without[1]

    def ours(body: bytes) -> list[str]:
        return [line for line in body.decode().splitlines() if line.startswith("lcpgateway_") and "_age_" not in line]

    assert ours(with_trace[0]) == ours(without[0])
    assert list(plain(with_trace[0].decode()))


@pytest.mark.parametrize("exemplar", [None, {}])
def test_without_a_trace_there_is_none(exemplar):
    body, _ = observed(exemplar).render(OPENMETRICS)
    assert "# {" not in body.decode()


def test_spans_are_counted_from_zero():
    metrics = Metrics()
    body = metrics.render("")[0].decode()
    assert "lcpgateway_trace_spans_lost_total 0.0" in body
    metrics.spans_exported(3)
    metrics.spans_lost(2)
    body = metrics.render("")[0].decode()
    assert "lcpgateway_trace_spans_exported_total 3.0" in body
    assert "lcpgateway_trace_spans_lost_total 2.0" in body
