"""A real Prometheus stores the exemplars of a real gateway, with the trace id of a slow request."""

import pytest

from tests.support.gateway import gateway
from tests.support.node_thread import eventually
from tests.support.otlp_collector import collector
from tests.support.prometheus import configuration, prometheus
from tests.support.wire import CHAT, document, post

pytestmark = pytest.mark.slow


# Exemplars must be enabled.
EXEMPLARS = "--enable-feature=exemplar-storage"


def test_prometheus_stores_the_trace_id_of_a_slow_request(tmp_path):
    with collector() as seen:
        settings = {"LCP_GATEWAY_OTLP_ENDPOINT": seen.endpoint, "OTEL_BSP_SCHEDULE_DELAY": "50"}
        with gateway(env=settings) as served:
            assert post(served.port, CHAT, document(CHAT, "echo-1", stream=True)).status == 200
            trace = seen.wait_for(["chat echo-1", "route", "quote", "pay", "stream"])
            with prometheus(configuration(f"127.0.0.1:{served.port}"), tmp_path, EXEMPLARS) as watcher:
                watcher.wait_for('up{job="lcp-gateway"} == 1', bool)

                def named() -> set[str]:
                    found = watcher.get(
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
                eventually(lambda: named() == wanted)
