"""The cookie of a signed-in browser: its name and flags by how the browser reached the gateway."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

from aiohttp import web

HTTPS_NAME: Final = "__Host-lcpg"
"""A name that browsers take only with Secure, Path=/ and no Domain, so that no other host can set it."""

_HOST = re.compile(r"(?P<host>\[[^\[\]]+\]|[^\[\]:]+)(?::(?P<port>[0-9]{1,5}))?")
_HTTP_PORT = "80"


@dataclass(frozen=True, slots=True)
class CookieForm:
    """The cookie as one browser gets it."""

    name: str
    path: str
    is_secure: bool

    def token(self, request: web.BaseRequest) -> str | None:
        """Return the session's token of a request, None without one; "" for cookies that contradict one another.

        Another server on this host, at another port, can set a cookie of this name: then neither counts.
        """
        values = {
            value.strip()
            for header in request.headers.getall("Cookie", ())
            for name, _, value in (part.partition("=") for part in header.split(";"))
            if name.strip() == self.name
        }
        if not values:
            return None
        return values.pop() if len(values) == 1 else ""

    def set(self, response: web.StreamResponse, token: str, lasts_s: int) -> None:
        """Put the cookie into a response."""
        self._set(response, token, max(1, lasts_s))

    def clear(self, response: web.StreamResponse) -> None:
        """Remove the cookie from the browser."""
        self._set(response, "", 0)

    def _set(self, response: web.StreamResponse, value: str, max_age_s: int) -> None:
        response.set_cookie(
            self.name, value, max_age=max_age_s, path=self.path, secure=self.is_secure, httponly=True, samesite="Strict"
        )


class Cookies:
    """The forms of the cookie; ``allow_insecure`` also gives one to browsers that come over plain http from elsewhere."""

    def __init__(self, *, allow_insecure: bool) -> None:
        self._allow_insecure = allow_insecure

    def form(self, request: web.BaseRequest) -> CookieForm | None:
        """Return the form of the cookie for a browser, None where it may not sign in.

        Over https one that stays on this host. Over plain http at a loopback name one that is named after the port, since
        browsers keep one jar for all ports of a host, and that goes to ``/api`` alone.
        """
        if request.scheme == "https":
            return CookieForm(HTTPS_NAME, "/", is_secure=True)
        found = _HOST.fullmatch(request.host)
        if found is None or not (self._allow_insecure or is_loopback_name(found["host"])):
            return None
        return CookieForm(f"lcpg_{found['port'] or _HTTP_PORT}", "/api", is_secure=False)


def is_loopback_name(host: str) -> bool:
    """Return whether a host, as a browser writes it, is the browser's own machine: what is sent there stays there."""
    name = host.lower().removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
