import asyncio
import threading
import time

import pytest
from structlog.testing import capture_logs

from lcp_gateway.purchase.tracing import TraceStep, error_type
from lcp_gateway.telemetry import trace_export
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.trace_export import ExportCounts, TraceExport
from lcp_gateway.telemetry.tracing import OtelTracing
from tests.support.otlp_collector import collector

LIMIT = trace_export._QUEUE_SPANS


class Counts:
    """Export counts, with a clock that only the test sets."""

    def __init__(self):
        self.now, self.exported, self.lost = 0.0, 0, 0
        self.counts = ExportCounts(
            on_exported=self._exported, on_lost=self._lost, log=get_logger("test"), clock=lambda: self.now
        )

    def _exported(self, count):
        self.exported += count

    def _lost(self, count):
        self.lost += count


@pytest.fixture(autouse=True)
def waits(monkeypatch):
    """Have an export's end wait for its collector, however busy the machine is."""
    monkeypatch.setattr(trace_export, "_FLUSH_S", 60.0)
    # So does each of its requests.
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "60")
    yield
    # One that was given up ends later, and its line would be in the next test's log.
    for thread in threading.enumerate():
        if thread.name == "close-traces":
            thread.join(60)


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")


def export_to(endpoint: str, counts: Counts, **changes) -> TraceExport:
    wanted = {"headers": {}, "ratio": 1.0, "version": "1.2.3", "counts": counts.counts, **changes}
    return TraceExport(endpoint, **wanted)


def trace_one(export: TraceExport) -> None:
    tracing = OtelTracing(export.tracer, error_type)
    with tracing.request([], []) as root:
        root.name("root")
        with tracing.span(TraceStep.PAY):
            pass


def test_an_hour_without_a_collector_is_a_line_a_minute():
    counts = Counts()
    with capture_logs() as lines:
        for _ in range(720):
            counts.counts.ended(10, well=False)
            counts.now += 5
    assert len(lines) == 60
    assert {line["problem"] for line in lines} == {"the collector takes no spans"}
    # Spans lost after the last line are reported in the next one.
    assert sum(line["spans"] for line in lines) == 7_200 - 11 * 10
    assert counts.lost == 7_200 and counts.exported == 0


def test_a_collector_that_comes_and_goes_does_not_fill_the_log():
    counts = Counts()
    with capture_logs() as lines:
        for turn in range(600):
            counts.counts.ended(1, well=bool(turn % 2))
            counts.now += 1
    assert 9 <= len(lines) <= 10


def test_a_collector_that_is_well_is_not_worth_a_line():
    counts = Counts()
    with capture_logs() as lines:
        for _ in range(100):
            counts.counts.ended(10, well=True)
            counts.now += 5
    assert lines == [] and counts.exported == 1_000


def test_a_full_queue_turns_spans_away():
    counts = Counts()
    assert all(counts.counts.admit() for _ in range(LIMIT))
    assert not counts.counts.admit()
    counts.counts.took(2)
    assert [counts.counts.admit() for _ in range(3)] == [True, True, False]
    assert counts.lost == 2


async def test_spans_come_with_the_service_that_sent_them(soon, monkeypatch):
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=9")
    counts = Counts()
    with collector() as seen:
        export = export_to(seen.endpoint, counts, headers={"X-Key": "k"})
        trace_one(export)
        trace = await asyncio.to_thread(seen.wait_for, ["root", "pay"])
        await export.close()
    assert trace.is_whole
    resource = trace.root.resource
    assert resource["service.name"] == "lcp-gateway"
    # The operator's setting takes precedence.
    assert (resource["service.version"], resource["deployment.environment.name"]) == ("9", "test")
    assert seen.headers[0]["x-key"] == "k" and set(seen.paths) == {"/v1/traces"}
    assert counts.exported == 2 and counts.lost == 0


async def test_the_name_of_the_service_may_be_another(soon, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "front")
    with collector() as seen:
        export = export_to(f"{seen.endpoint}/v1/traces", Counts())
        trace_one(export)
        await export.close()
    assert seen.spans[0].resource["service.name"] == "front"
    assert set(seen.paths) == {"/v1/traces"}


async def test_queued_spans_are_exported_at_the_end():
    with collector() as seen:
        export = export_to(seen.endpoint, Counts())
        for _ in range(300):
            trace_one(export)
        await export.close()
        assert len(seen.spans) == 600


@pytest.mark.parametrize("status", [500, 503, 400, 302])
async def test_a_collector_that_refuses_costs_spans_and_nothing_else(soon, status, caplog, monkeypatch):
    monkeypatch.setattr(trace_export, "_FLUSH_S", 0.5)
    counts = Counts()
    with collector() as seen, capture_logs() as lines:
        seen.status = status
        export = export_to(seen.endpoint, counts)
        trace_one(export)
        await asyncio.sleep(0.2)
        # The library by itself would retry for a minute.
        async with asyncio.timeout(60):
            await export.close()
    assert seen.spans == [] and not caplog.records
    assert len(lines) <= 1


async def test_the_end_waits_for_a_slow_collector_only_so_long(monkeypatch):
    monkeypatch.setattr(trace_export, "_FLUSH_S", 0.3)
    with collector() as seen:
        seen.held.clear()
        export = export_to(seen.endpoint, Counts())
        trace_one(export)
        async with asyncio.timeout(60):
            await export.close()
        assert seen.raw == []


async def test_a_collector_that_is_gone_delays_no_request(soon, monkeypatch):
    monkeypatch.setattr(trace_export, "_FLUSH_S", 0.3)
    with collector() as gone:
        pass
    counts = Counts()
    export = export_to(gone.endpoint, counts)
    began = time.monotonic()
    for _ in range(LIMIT):
        trace_one(export)
    assert counts.lost >= LIMIT - 3 * trace_export._BATCH_SPANS
    # 4,000 requests: a wait for the collector in each would take hours.
    assert time.monotonic() - began < 60
    await export.close()


def test_an_invalid_variable_of_opentelemetry_is_reported(monkeypatch):
    monkeypatch.setenv("OTEL_LINK_ATTRIBUTE_COUNT_LIMIT", "many")
    with pytest.raises(ValueError, match="OTEL_LINK_ATTRIBUTE_COUNT_LIMIT"):
        export_to("http://127.0.0.1:1", Counts())
