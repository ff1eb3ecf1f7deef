"""A proxy in the environment gets none of the gateway's requests: prompts and macaroons would pass it in clear."""

import json

import pytest

from tests.support.daemon import daemon
from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread
from tests.support.listening_proxy import listening_proxy
from tests.support.lnd_standin import LndStandin, in_a_thread, lnd_settings
from tests.support.node_thread import eventually
from tests.support.otlp_collector import collector
from tests.support.wire import CHAT, document, post


@pytest.mark.parametrize("asked", ["", "true"], ids=["by default", "asked for"])
def test_nothing_on_this_machine_is_reached_through_a_proxy(asked, tmp_path):
    """Once gRPC used the proxy by itself, so that the gateway did not start, or sent prompts and macaroons through it."""
    with (
        listening_proxy() as proxy,
        daemon() as node,
        in_a_thread(LndStandin(tmp_path)) as lnd,
        HttpNodeThread("home", ("home-1",)) as http_node,
        collector() as seen,
    ):
        nodes = [{"name": "home", "base_url": http_node.base_url}]
        settings = {
            **proxy.variables,
            **lnd_settings(lnd.address),
            "LCP_GATEWAY_LCPD_GRPC_ADDR": node.address,
            "LCP_GATEWAY_LCPD_METADATA": "macaroon=00ff",
            "LCP_GATEWAY_NODES": json.dumps(nodes),
            "LCP_GATEWAY_OTLP_ENDPOINT": seen.endpoint,
            "LCP_GATEWAY_PROXY_FROM_ENVIRONMENT": asked,
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with gateway(embedded=False, env=settings) as served:
            for model in ("echo-1", "home-1"):
                answer = post(served.port, CHAT, document(CHAT, model, "hello"))
                assert answer.status == 200, answer.body
            counted = post(served.port, "/v1/responses/input_tokens", {"model": "home-1", "input": "hello"})
            assert counted.status == 200
            eventually(lambda: seen.spans)
            assert "/v1/models" in {request.path for request in http_node.requests}
            assert served.stop() == 0
        assert (proxy.connections, proxy.received) == (0, [])


def test_what_is_elsewhere_is_reached_through_the_proxy_that_was_asked_for(tmp_path):
    nodes = [{"name": "far", "base_url": "http://node.invalid:8000/v1"}]
    with listening_proxy() as proxy:
        settings = {
            **proxy.variables,
            "LCP_GATEWAY_NODES": json.dumps(nodes),
            "LCP_GATEWAY_PROXY_FROM_ENVIRONMENT": "true",
        }
        with gateway(env=settings):
            eventually(lambda: proxy.received)
        assert proxy.received[0].startswith(b"GET http://node.invalid:8000/v1/models HTTP/1.1\r\n")
