"""Gateways with a console, and signed-in users of it. Sign-ins are few: each address has ten a minute."""

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest
import pytest_asyncio
from playwright.async_api import Browser

from tests.support.console import ADMIN_KEY, Api, Customer, Visit, make_customer, visit
from tests.support.gateway import RunningGateway, gateway
from tests.support.http_node import HttpNodeThread

SELLING_ENV = {
    "LCP_GATEWAY_AUTH": "accounts",
    "LCP_GATEWAY_ADMIN_KEY": ADMIN_KEY,
    "LCP_GATEWAY_MARKUP_PERCENT": "10",
    "LCP_GATEWAY_REGISTRATION": "open",
}
HOSTILE = "<img src=x onerror=alert(1)>\"'><script>alert(2)</script>"
"""A name as an attacker would choose it."""
FORMULA = "=HYPERLINK(evil)"
"""A name that a spreadsheet would run."""


@pytest.fixture(scope="session")
def claw() -> Iterator[HttpNodeThread]:
    """A server like OpenClaw's, with models of hostile names besides."""
    with HttpNodeThread(name="Claw", models=("claw-1", HOSTILE, FORMULA), api_key="sk-claw") as running:
        yield running


@pytest.fixture(scope="session")
def seller(claw) -> Iterator[RunningGateway]:
    """A gateway that sells, with an OpenClaw node of another name and a peer that fails on demand."""
    settings = {
        **SELLING_ENV,
        "LCP_GATEWAY_NODE_FAULTS": "true",
        "LCP_GATEWAY_TOPUPS_OPEN_MAX": "20",
        "OPENCLAW_ENABLED": "true",
        "OPENCLAW_BASE_URL": claw.base_url.removesuffix("/v1"),
        "OPENCLAW_API_KEY": "sk-claw",
        "OPENCLAW_NODE_NAME": "Kralle",
        # Free requests are no purchases.
        "OPENCLAW_PRICE": "60",
    }
    with gateway(env=settings) as running:
        yield running


@pytest.fixture(scope="session")
def laptop() -> Iterator[RunningGateway]:
    """A gateway without keys on this computer."""
    with gateway() as running:
        yield running


class People:
    """Customers and the operator of a gateway that sells; each signs in once, and every visit of theirs has that session."""

    def __init__(self, browser: Browser, running: RunningGateway) -> None:
        self.browser = browser
        self.running = running
        self._states: dict[str, object] = {}

    @asynccontextmanager
    async def visit(self, key: str, **options: object) -> AsyncIterator[Visit]:
        """Open a browser of the holder of a sign-in key."""
        if key not in self._states:
            async with visit(self.browser, self.running) as visiting:
                await visiting.sign_in(key)
                self._states[key] = await visiting.context.storage_state()
        async with visit(self.browser, self.running, storage_state=self._states[key], **options) as visiting:
            yield visiting


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def people(browser, seller) -> People:
    return People(browser, seller)


@pytest.fixture(scope="session")
def alice(seller) -> Customer:
    return make_customer(seller, "alice")


@pytest.fixture(scope="session")
def bob(seller) -> Customer:
    return make_customer(seller, "bob")


@pytest.fixture(scope="session")
def operator(seller) -> Api:
    return Api(seller.base_url)


@pytest_asyncio.fixture(loop_scope="session")
async def at_alice(people, alice) -> AsyncIterator[Visit]:
    async with people.visit(alice.sign_in_key) as visiting:
        yield visiting


@pytest_asyncio.fixture(loop_scope="session")
async def at_operator(people) -> AsyncIterator[Visit]:
    async with people.visit(ADMIN_KEY) as visiting:
        yield visiting


@pytest_asyncio.fixture(loop_scope="session")
async def visits(browser) -> AsyncIterator[object]:
    """A function that opens browsers of strangers at a gateway."""
    async with AsyncExitStack() as stack:

        async def open_one(running: RunningGateway, **options: object) -> Visit:
            return await stack.enter_async_context(visit(browser, running, **options))

        yield open_one
