"""A real Chromium, pages of many origins, and gateways that they may not use."""

import asyncio
import os
import shutil
import threading
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, Page, async_playwright

from tests.browser.console_fixtures import (  # noqa: F401 - fixtures
    alice,
    at_alice,
    at_operator,
    bob,
    claw,
    laptop,
    operator,
    people,
    seller,
    visits,
)
from tests.support.console import PATIENCE_MS
from tests.support.gateway import gateway

FOLDER = Path(__file__).parent
STRANGER, FRIEND, REBOUND = "stranger.example", "friend.example", "rebound.example"
"""Names that all lead to 127.0.0.1: of a page elsewhere, of one that is allowed, and one that was rebound."""
LAUNCH_MS = 120_000
FLAGS = [
    *("--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    # Newer browsers ask their user before a page of the internet reaches this machine; others do not.
    "--disable-features=LocalNetworkAccessChecks,BlockInsecurePrivateNetworkRequests,PrivateNetworkAccessSendPreflights",
    f"--host-resolver-rules=MAP {STRANGER} 127.0.0.1, MAP {FRIEND} 127.0.0.1, MAP {REBOUND} 127.0.0.1",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run all tests of a browser on the event loop of its fixtures."""
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    # The same engine without the windows, tabs and profiles of a desktop, which take three quarters of the CPU time.
    found = shutil.which("chromium-headless-shell") or shutil.which("chromium")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("chromium is not installed (Debian's package: chromium-headless-shell)")
    assert found, "chromium must be installed where CI=true"
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=found, args=FLAGS, timeout=LAUNCH_MS)
        yield launched
        await launched.close()


@pytest_asyncio.fixture(loop_scope="session")
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page of a browser that remembers nothing."""
    context = await browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    yield await context.new_page()
    await context.close()


class _Pages(BaseHTTPRequestHandler):
    """An empty page under every path."""

    def do_GET(self) -> None:
        body = b"<!doctype html><title>a page</title><body></body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        pass


@pytest.fixture(scope="session")
def pages_port() -> Iterator[int]:
    """The port of a server of other pages."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Pages)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server.server_port
    server.shutdown()
    server.server_close()
    thread.join()


class Watched:
    """A gateway without keys, with its answers and the node's events."""

    def __init__(self, running) -> None:
        self.running = running
        self.port = running.port
        self.url = f"http://127.0.0.1:{running.port}"
        self.seen = 0

    def begin(self) -> None:
        self.seen = len(self.running.json_logs())

    def statuses(self) -> list[int]:
        """The statuses of all answers since the beginning of the test."""
        lines = self.running.json_logs()[self.seen :]
        return [line["status"] for line in lines if "status" in line and "endpoint" in line] + [
            line["status"] for line in lines if "payment" in line
        ]

    async def answered(self, count: int = 1) -> list[int]:
        """Wait for so many answers; return the statuses of all."""
        async with asyncio.timeout(60):
            while len(self.statuses()) < count:
                await asyncio.sleep(0.02)
        return self.statuses()

    def bought(self) -> int:
        """The number of quotes, accepts and payments in the node's events."""
        return len(self.running.events("quote") + self.running.events("accept"))


@pytest.fixture(scope="session")
def closed(pages_port) -> Iterator[Watched]:
    """A gateway without keys, as on a laptop; pages of one other origin may call it."""
    settings = {"LCP_GATEWAY_CORS_ORIGINS": f"http://{FRIEND}:{pages_port}", "LCP_GATEWAY_LOG_LEVEL": "debug"}
    with gateway(env=settings) as running:
        yield Watched(running)


@pytest.fixture(scope="session")
def wide_open() -> Iterator[Watched]:
    """A gateway that accepts any host and any origin: the control of these tests."""
    settings = {"LCP_GATEWAY_ALLOWED_HOSTS": "*", "LCP_GATEWAY_CORS_ORIGINS": "*", "LCP_GATEWAY_LOG_LEVEL": "debug"}
    with gateway(env=settings) as running:
        yield Watched(running)
