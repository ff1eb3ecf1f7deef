"""A real Prometheus takes the exemplars of a real gateway, and leads from a slow request to its trace."""

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.support.gateway import gateway
from tests.support.node_thread import eventually
from tests.support.otlp_collector import collector
from tests.support.prometheus import (
    RunningPrometheus,
    _wait_until_ready,
    configuration,
    executable,
)
from tests.support.wire import CHAT, document, post

pytestmark = pytest.mark.slow


@contextmanager
def with_exemplars(target: str, folder: Path) -> Iterator[RunningPrometheus]:
    """Run Prometheus as operators do who want exemplars: they are behind a switch."""
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration(target)))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                executable(),
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--enable-feature=exemplar-storage",
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        try:
            running = RunningPrometheus(f"http://{address}")
            _wait_until_ready(running, process, log)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(5)


def test_prometheus_leads_from_a_latency_to_a_trace(tmp_path):
    with collector() as seen:
        settings = {"LCP_GATEWAY_OTLP_ENDPOINT": seen.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with gateway(env=settings) as served:
            assert post(served.port, CHAT, document(CHAT, "echo-1", stream=True)).status == 200
            trace = seen.wait_for(["chat echo-1", "route", "quote", "pay", "stream"])
            with with_exemplars(f"127.0.0.1:{served.port}", tmp_path) as prometheus:
                prometheus.wait_for('up{job="lcp-gateway"} == 1', bool)

                def named() -> set[str]:
                    found = prometheus.get(
                        "/api/v1/query_exemplars",
                        query='{__name__=~"lcpgateway_.*_bucket"}',
                        start="0",
                        end="9999999999",
                    )
                    return {
                        row["seriesLabels"]["__name__"]
                        for row in found
                        for one in row["exemplars"]
                        if one["labels"] == {"trace_id": trace.root.trace_id}
                    }

                latencies = ("request", "quote", "execute", "first_byte")
                wanted = {f"lcpgateway_{name}_duration_seconds_bucket" for name in latencies}
                eventually(lambda: named() == wanted, timeout_s=15)
