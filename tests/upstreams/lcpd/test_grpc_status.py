"""Messages for clients about failed calls to the daemon: a sentence without addresses."""

import pytest

from lcp_gateway.http.error_mapping import map_purchase_error
from lcp_gateway.upstream_status import UpstreamStatus
from lcp_gateway.upstreams.lcpd.grpc_status import DAEMON_AWAY, upstream_error
from lcp_gateway.upstreams.lcpd.transport import RpcError
from tests.support.cases import each_case

AWAY = [
    "failed to connect to all addresses; last error: UNKNOWN: ipv4:127.0.0.1:50051: Connection refused (111)",
    "connections to all backends failing; last error: UNKNOWN: unix:/run/lcpd.sock: No such file or directory",
    "Socket closed",
    "recvmsg:Connection reset by peer",
    "sendmsg: Broken pipe (32)",
    "DNS resolution failed for lcpd:50051: C-ares status is not ARES_SUCCESS qtype=A name=lcpd",
    "Connection reset by peer",
    "GOAWAY received; Error code: 2; Debug Text: too_many_pings",
    "keepalive timeout",
]
WITH_ADDRESS = [
    'rpc error: desc = "transport: Error while dialing: dial tcp 10.0.0.7:10009: connect: connection refused"',
    "peer 03ab@203.0.113.9:9735 is not connected",
    "dial tcp [fd00::7]:10009: i/o timeout",
    "lookup lnd.internal:10009: no such host",
    "dial unix /run/lnd/lnd.sock: no such file",
    "cannot reach localhost:10009",
]
ADDRESSES = ["10.0.0.7", "203.0.113.9", "fd00::7", "lnd.internal", "lnd.sock", "localhost"]
KEPT = [
    "peer not connected",
    "model gpt-4.1:latest is not offered",
    "price 1.5 of 2:1 is too high",
    "lcp_error code=8: rate limited",
    "version 1.2.3 of the peer",
]


def failed(status, text, **how):
    return upstream_error(RpcError(UpstreamStatus[status], text), how.pop("version", 2), **how)


@pytest.mark.parametrize("text", AWAY)
def test_an_unreachable_daemon_is_reported_in_a_sentence_as_503(text):
    """Regression: the client got 502, and gRPC's own text with addresses."""
    error = failed("UNAVAILABLE", text)
    assert (error.message, error.is_away) == (DAEMON_AWAY, True)
    answer = map_purchase_error(error)
    assert (answer.status, answer.code, answer.retry) == (503, "no_provider", True)


@pytest.mark.parametrize("text", WITH_ADDRESS)
def test_an_address_in_the_daemons_message_is_left_out(text):
    error = failed("UNAVAILABLE", text)
    assert not error.is_away
    assert not [address for address in ADDRESSES if address in error.message]
    assert "[address]" in error.message
    # A provider answered: the status is the same as openai-serve's.
    assert map_purchase_error(error).status == 502


@pytest.mark.parametrize("text", KEPT)
def test_an_invalid_address_stays(text):
    assert failed("UNAVAILABLE", text).message == text


@each_case("text", [*AWAY, *WITH_ADDRESS])
def test_the_call_that_pays_keeps_the_text_as_evidence(text):
    assert failed("UNAVAILABLE", text, for_client=False).message == text
