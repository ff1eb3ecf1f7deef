"""A person with a browser in front of the console, and the HTTP API beside it."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import httpx
from playwright.async_api import Browser, BrowserContext, Locator, Page, expect

from tests.support.gateway import RunningGateway

ADMIN_KEY = "admin-key-of-the-tests"
_POLICY = re.compile(r"Content Security Policy|Trusted ?Type|violates the following", re.IGNORECASE)
# Waits for what a busy machine does slowly; nothing is measured with it.
PATIENCE_MS = 60_000
expect.set_options(timeout=PATIENCE_MS)


@dataclass
class Api:
    """The gateway's own routes, with a key."""

    base_url: str
    key: str | None = ADMIN_KEY

    def send(self, method: str, path: str, body: object = None, **headers: str) -> httpx.Response:
        sent = {**({"Authorization": f"Bearer {self.key}"} if self.key else {}), **headers}
        return httpx.request(method, self.base_url + path, json=body, headers=sent, timeout=60, verify=False)

    def get(self, path: str):
        return _good(self.send("GET", path))

    def post(self, path: str, body: object = None, **headers: str):
        return _good(self.send("POST", path, body or {}, **headers))

    def buy(self, model: str = "echo-1", text: str = "hello", **fields: object) -> httpx.Response:
        """Send one small request."""
        body = {"model": model, "max_tokens": 20, "messages": [{"role": "user", "content": text}], **fields}
        return self.send("POST", "/v1/chat/completions", body)


def _good(answer: httpx.Response):
    assert answer.is_success, (answer.status_code, answer.text)
    return answer.json()


@dataclass
class Customer:
    """An account with a sign-in key and a key that buys."""

    id: str
    sign_in_key: str
    key: str
    key_id: str
    api: Api
    cookies: list[dict[str, object]] = field(default_factory=list)


def make_customer(running: RunningGateway, name: str = "alice", sats: int = 1_000, **limits: object) -> Customer:
    """Make an account with money, as an operator does."""
    admin = Api(running.base_url)
    account = admin.post("/api/admin/accounts", {"name": name})["id"]
    if sats:
        admin.post(f"/api/admin/accounts/{account}/adjustments", {"amount_msat": sats * 1000, "reason": "a test"})
    path = f"/api/admin/accounts/{account}/keys"
    sign_in = admin.post(path, {"name": "sign-in", "scopes": ["account", "wallet"]})
    buying = admin.post(path, {"name": "program", **limits})
    return Customer(account, sign_in["key"], buying["key"], buying["id"], Api(running.base_url, buying["key"]))


@dataclass
class Visit:
    """One browser of one person. ``problems`` are errors of pages, policy reports, and requests to other hosts."""

    context: BrowserContext
    page: Page
    url: str
    problems: list[str] = field(default_factory=list)

    async def open(self, path: str = "") -> None:
        """Show a page of the console by its address behind the ``#``."""
        await self.page.goto(f"{self.url}/console/#/{path}")
        await expect(self.page.locator("h1").first).to_be_visible()

    async def go(self, path: str) -> None:
        """Follow a link within the console."""
        await self.page.evaluate("(hash) => { location.hash = hash }", f"#/{path}")

    async def sign_in(self, key: str) -> None:
        """Sign in with a key."""
        await self.page.goto(f"{self.url}/console/")
        await self.page.get_by_label("Key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        await expect(self.heading("Overview")).to_be_visible()

    def heading(self, name: str) -> Locator:
        return self.page.get_by_role("heading", name=name, exact=True, level=1)

    def figure(self, name: str) -> Locator:
        """Return the value of a figure by its name."""
        return self.page.locator(".figure", has=self.page.locator("dt", has_text=re.compile(f"^{name}$"))).locator("dd")

    async def tab(self) -> Page:
        """Open another tab of the same browser."""
        page = await self.context.new_page()
        self.watch(page)
        return page

    def watch(self, page: Page) -> None:
        """Record errors of a page, reports of its policy, and requests to other hosts."""
        host = urlsplit(self.url).netloc

        def on_console(message) -> None:
            if _POLICY.search(message.text):
                self.problems.append(message.text)

        def on_request(request) -> None:
            found = urlsplit(request.url)
            if found.scheme in {"http", "https", "ws", "wss"} and found.netloc != host:
                self.problems.append(f"a request to {request.url}")

        page.on("console", on_console)
        page.on("pageerror", lambda error: self.problems.append(f"{error.message}\n{error.stack}"))
        page.on("request", on_request)


@asynccontextmanager
async def visit(browser: Browser, running: RunningGateway, **options: object) -> AsyncIterator[Visit]:
    """Open a browser that remembers nothing; afterwards no problem may have come up."""
    url = str(options.pop("url", running.base_url))
    context = await browser.new_context(**options)
    context.set_default_timeout(PATIENCE_MS)
    visiting = Visit(context, await context.new_page(), url)
    visiting.watch(visiting.page)
    try:
        yield visiting
    finally:
        await context.close()
    assert visiting.problems == []


def rows_of(page: Page, caption: str) -> Locator:
    """Return the rows of a table by its caption."""
    return page.get_by_role("region", name=f"{caption}, table", exact=True).locator("tbody tr")


def sats(text: str) -> int:
    """Read a shown amount, like ``1,234.567 sat``, as msat."""
    found = re.search("([+\u2212]?)([\\d,]+)(?:\\.(\\d{1,3}))?", text)
    assert found, text
    msat = int(found[2].replace(",", "")) * 1000 + int((found[3] or "").ljust(3, "0"))
    return -msat if found[1] == "\u2212" else msat
