"""A browser in front of a gateway with accounts, as far as HTTP sees it: its cookie jar, and the headers no page can change."""

from contextlib import asynccontextmanager
from http.cookies import SimpleCookie

from lcp_gateway.config import Settings
from tests.http.front import ADMIN_KEY, STATIC_KEY, front


def console_settings(**more) -> Settings:
    return Settings(auth="accounts", admin_key=ADMIN_KEY, api_keys=(STATIC_KEY,), **more)


class Browser:
    """Sends the headers of a fetch by the console's own page, unless a test changes them (None leaves one out)."""

    def __init__(self, gateway) -> None:
        self.gateway = gateway
        self.origin = str(gateway.client.make_url("/")).rstrip("/")
        self.cookies: dict[str, str] = {}

    async def send(self, method, path, *, json=None, headers=(), confirm=None, data=None):
        """Send a request with the cookie; keep the cookies of the response."""
        own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors"}
        if method not in {"GET", "HEAD"}:
            own |= {"Origin": self.origin, "Content-Type": "application/json"}
        if confirm is not None:
            own["X-Lcp-Confirm"] = confirm
        if self.cookies:
            own["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        own = {name: value for name, value in {**own, **dict(headers)}.items() if value is not None}
        more = {"data": data} if json is None else {"json": json}
        found = await self.gateway.ask(method, path, None, headers=own, **more)
        for header in found.headers.getall("Set-Cookie", ()):
            for name, morsel in SimpleCookie(header).items():
                self.cookies.pop(name, None)
                if morsel["max-age"] != "0":
                    self.cookies[name] = morsel.value
        return found

    async def sign_in(self, key, **more):
        return await self.send("POST", "/api/session", json={"key": key}, **more)

    @property
    def signed_in(self) -> bool:
        return bool(self.cookies)


@asynccontextmanager
async def console(bank, **settings):
    """A gateway with the console; yields it and a function that opens another browser."""
    limits = {name: settings.pop(name) for name in ("api_per_caller", "with_l402") if name in settings}
    async with front(bank, settings=console_settings(**settings), **limits) as gateway:
        yield gateway, lambda: Browser(gateway)


def rows(gateway) -> list[tuple[str, str]]:
    """Return the methods and paths of a gateway's routes."""
    return [
        (route.method, route.resource.canonical) for route in gateway.app.router.routes() if route.resource is not None
    ]
