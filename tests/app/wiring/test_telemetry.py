import subprocess
import sys

import pytest
from structlog.testing import capture_logs

from lcp_gateway.app.wiring import WiringError
from lcp_gateway.app.wiring.telemetry import open_tracing
from lcp_gateway.config import Settings
from lcp_gateway.purchase.tracing import NO_TRACING
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from tests.support.otlp_collector import collector

OURS = ("lcp_gateway.telemetry.tracing", "lcp_gateway.telemetry.trace_export")

IMPORTED = """
import sys, lcp_gateway.app.main, lcp_gateway.cli.serve.serve
print([name for name in sys.modules if name.partition(".")[0] in ("opentelemetry", "requests")])
"""


def open_with(**settings):
    return open_tracing(Settings(**settings), Metrics(), get_logger("test"))


async def test_without_a_collector_there_are_no_traces():
    async with open_with() as tracing:
        assert tracing is NO_TRACING


def test_a_gateway_without_traces_imports_nothing_of_opentelemetry():
    said = subprocess.run([sys.executable, "-c", IMPORTED], capture_output=True, text=True, timeout=60, check=True)
    assert said.stdout == "[]\n"


async def test_without_the_extra_the_start_names_it(monkeypatch):
    for name in OURS:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    with pytest.raises(WiringError, match=r"pip install 'lcp-gateway\[tracing\]'"):
        async with open_with(otlp_endpoint="http://127.0.0.1:1"):
            pass


async def test_a_variable_that_makes_no_sense_is_said_at_the_start(monkeypatch):
    monkeypatch.setenv("OTEL_SPAN_EVENT_COUNT_LIMIT", "-5")
    with pytest.raises(WiringError, match="OTEL_SPAN_EVENT_COUNT_LIMIT"):
        async with open_with(otlp_endpoint="http://127.0.0.1:1"):
            pass


async def test_all_spans_are_exported_at_the_end(monkeypatch):
    monkeypatch.setattr("lcp_gateway.telemetry.trace_export._FLUSH_S", 60.0)
    metrics = Metrics()
    with collector() as seen, capture_logs() as lines:
        settings = Settings(otlp_endpoint=seen.endpoint, otlp_headers={"x-key": "SECRET"})
        async with open_tracing(settings, metrics, get_logger("test")) as tracing:
            with tracing.request([], []) as root:
                root.name("chat m")
                metrics.execute("p", "m", 0.1)
                shown = {"trace_id": root.trace_id}
                assert metrics.exemplar() == shown
            assert metrics.exemplar() is None
        assert [span.name for span in seen.spans] == ["chat m"]
        assert seen.headers[0]["x-key"] == "SECRET"
    assert lines == [] and "SECRET" not in repr(settings)
