"""Messages about a daemon that fails, and how long commands wait for the embedded node."""

from types import SimpleNamespace

import pytest

from lcp_gateway.cli.market import providers
from lcp_gateway.cli.market.providers import daemon_advice, describe_daemon_error, retry_until_up
from lcp_gateway.config import Settings
from lcp_gateway.purchase.errors import UpstreamError

THEIRS = Settings(lcpd_grpc_addr="lcpd.lan:50051", preflight_timeout_s=5)
OURS = THEIRS.model_copy(update={"embedded": True})


@pytest.mark.parametrize(
    ("status", "settings", "words"),
    [
        ("UNAVAILABLE", THEIRS, "is lcpd-grpcd running there"),
        ("DEADLINE_EXCEEDED", THEIRS, "is lcpd-grpcd running there"),
        ("UNAVAILABLE", OURS, "the embedded node did not start"),
        ("UNAUTHENTICATED", THEIRS, "lcpd_metadata"),
        ("PERMISSION_DENIED", THEIRS, "lcpd_metadata"),
        ("UNIMPLEMENTED", THEIRS, "check lcpd_grpc_addr"),
        ("INTERNAL", THEIRS, "the daemon's own log"),
    ],
)
def test_each_failure_comes_with_advice(status, settings, words):
    assert words in daemon_advice(UpstreamError(status, "x"), settings)


def test_an_unreachable_daemon_is_reported_by_address_and_an_error_by_its_text():
    silence = UpstreamError("UNAVAILABLE", "ipv4:127.0.0.1: connect: refused")
    assert describe_daemon_error(silence, THEIRS) == "the daemon at lcpd.lan:50051 does not answer (UNAVAILABLE)"
    assert describe_daemon_error(UpstreamError("INTERNAL", "no lnd"), THEIRS) == "no lnd (INTERNAL)"


class Asked:
    """A probe that fails so many times before it succeeds."""

    def __init__(self, failures, status="UNAVAILABLE"):
        self.left = failures
        self.status = status
        self.calls = 0

    async def __call__(self, timeout_s):
        self.calls += 1
        if self.calls <= self.left:
            raise UpstreamError(self.status, "not yet")
        return timeout_s


async def test_our_own_node_is_asked_until_it_is_up():
    asked = Asked(2)
    assert 0 < await retry_until_up(OURS, asked) < 5
    assert asked.calls == 3


@pytest.mark.parametrize(("settings", "status"), [(THEIRS, "UNAVAILABLE"), (OURS, "INTERNAL")])
async def test_anything_else_is_asked_once(settings, status):
    asked = Asked(1, status)
    with pytest.raises(UpstreamError):
        await retry_until_up(settings, asked)
    assert asked.calls == 1


async def test_waiting_for_our_own_node_ends(monkeypatch):
    """With a scripted clock, so that the test does not wait."""
    now, asked = [0.0], Asked(10**6)
    clock = SimpleNamespace(monotonic=lambda: now[0])

    async def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(providers, "time", clock)
    monkeypatch.setattr(providers, "asyncio", SimpleNamespace(sleep=sleep))
    with pytest.raises(UpstreamError):
        await retry_until_up(OURS, asked)
    assert now[0] <= OURS.preflight_timeout_s
    assert 40 < asked.calls < 60
