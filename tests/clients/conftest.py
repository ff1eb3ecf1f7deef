"""Two gateways for all clients, one open and one with a key, and the node's events during a test."""

from dataclasses import dataclass, field

import pytest

from tests.support.gateway import RunningGateway, gateway

API_KEY = "sk-clients-of-the-test"
PRICE_LIMIT_MSAT = 20_000


@pytest.fixture(scope="session")
def running():
    """A gateway without keys, on a node that has a model for every fault."""
    with gateway(env={"LCP_GATEWAY_NODE_FAULTS": "true"}) as process:
        yield process


@pytest.fixture(scope="session")
def guarded():
    """A gateway that asks for a key and has a price limit; echo-1 without max_tokens costs more than that."""
    settings = {"LCP_GATEWAY_API_KEYS": API_KEY, "LCP_GATEWAY_MAX_PRICE_MSAT": str(PRICE_LIMIT_MSAT)}
    with gateway(env=settings) as process:
        yield process


@pytest.fixture
def api_key():
    return API_KEY


@pytest.fixture(scope="session")
def hasty():
    """A gateway like ``running`` that soon gives up a provider that hangs."""
    settings = {"LCP_GATEWAY_NODE_FAULTS": "true", "LCP_GATEWAY_TIMEOUT_EXECUTE_S": "3"}
    with gateway(env=settings) as process:
        yield process


@dataclass
class Account:
    """The node's events since the test began."""

    source: RunningGateway
    opened_at: int = field(init=False)

    def __post_init__(self):
        self.opened_at = len(self.source.events())

    def seen(self, kind: str) -> list[dict[str, object]]:
        return [e for e in self.source.events()[self.opened_at :] if e["kind"] == kind]

    @property
    def accepts(self) -> int:
        """How many quotes the gateway took: each is a payment, or an attempt at one."""
        return len(self.seen("accept"))

    @property
    def payments(self) -> int:
        return len(self.seen("paid"))


@pytest.fixture
def account(running):
    """The events of ``running``'s node during this test."""
    return Account(running)


@pytest.fixture
def hasty_account(hasty):
    """The events of ``hasty``'s node during this test."""
    return Account(hasty)


@pytest.fixture
def guarded_account(guarded):
    """The events of ``guarded``'s node during this test."""
    return Account(guarded)
