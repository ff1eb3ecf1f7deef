"""The browser guard: a web page must not use the gateway through its visitor's browser.

A browser is the one client that sends requests for third parties, the pages it shows. Where the gateway asks for no
credential, the address is all that such a page needs, and ``http://127.0.0.1:8080`` is easy to guess. The page is
recognised by headers that the browser itself writes and no page can change:

- ``Host``: a page whose own name was made to resolve to the gateway's address (DNS rebinding) is of the same origin as
  the gateway, but still sends its name. An IP address, ``localhost`` and ``*.localhost`` cannot be rebound.
- ``Origin``: sent with every POST and with every request whose answer the page could read.
- ``Sec-Fetch-Site``: recognises an image, a frame or a script of another site, which send no ``Origin``.

SDKs, curl and other programs send neither of the last two, and reach a gateway by its address. A caller with a
credential is not checked: a page does not know the credential, and its browser does not add it.
"""

import ipaddress
import re
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final

from aiohttp import web
from structlog.typing import FilteringBoundLogger

from lcp_gateway.http.cors import Cors
from lcp_gateway.http.errors import ApiError

ANY_HOST: Final = "*"
PAGES: Final = frozenset({"/", "/healthz", "/readyz", "/metrics"})
"""The pages that a link on another site may lead to: the user reads them, the page with the link cannot."""

# A name, an IPv4 address, or an IPv6 address in brackets, then perhaps a port.
_HOST = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<name>[^\[\]:@/\\,\s]+))(?::(?P<port>[0-9]{0,5}))?")
_LONGEST_HOST = 300
_LONGEST_SHOWN = 100
_HOSTS_REMEMBERED = 128
_FOREIGN_SITES = frozenset({"cross-site", "same-site"})
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}
_LOG_EVERY_S = 60.0


class BrowserGuard:
    """Refuses requests of a browser for a page that is not the gateway's own and is not allowed by the settings.

    ``allowed_hosts`` are names beside the addresses and localhost: ``gateway``, ``*.example.com`` for every name below
    it, or ``*`` for any name, which turns the protection against rebound names off. ``cors`` knows the origins whose
    pages may call.
    """

    def __init__(
        self,
        cors: Cors,
        allowed_hosts: Iterable[str] = (),
        *,
        log: FilteringBoundLogger | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cors = cors
        names = [name.lower() for name in allowed_hosts]
        self._any_host = ANY_HOST in names
        self._names = frozenset(names)
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._log = log
        self._clock = clock
        self._logged_at: dict[str, float] = {}
        # Clients send the same few hosts again and again.
        self._is_allowed = lru_cache(_HOSTS_REMEMBERED)(self._judge_host)

    def check(self, request: web.BaseRequest) -> None:
        """Check a request without a credential.

        Raises:
            ApiError: 421 for a host that the gateway does not answer to, 403 for a page of another origin.
        """
        self.check_host(request)
        self.check_origin(request)

    def check_host(self, request: web.BaseRequest) -> None:
        """Check that a request names the gateway by an IP address, as localhost, or by an allowed name.

        Raises:
            ApiError: 421.
        """
        if (host := self._foreign_host(request)) is None:
            return
        shown = _shown(host)
        self._hint("host", "allowed_hosts", shown)
        what = f"the host {shown!r}" if host else "a request without a host"
        raise ApiError(
            421,
            f"this gateway does not answer to {what}: without a credential it is reached by an IP address or as "
            "localhost. Add the name to the setting allowed_hosts to reach it by name",
            code="host_not_allowed",
            reason="host",
        )

    def check_origin(self, request: web.BaseRequest) -> None:
        """Check that no web page caused a request, except one of the gateway's own or of an allowed origin.

        Raises:
            ApiError: 403.
        """
        headers = request.headers
        origin = headers.get("Origin")
        if origin is not None:
            if not (self._cors.allows(origin) or self.is_own(request, origin)):
                raise self._foreign_origin(origin)
            return
        site = headers.get("Sec-Fetch-Site")
        if site is None or site.lower() not in _FOREIGN_SITES or _is_link_to_page(request):
            return
        self._hint("cross_site", "cors_origins", site.lower())
        raise ApiError(
            403,
            f"a web page of another origin caused this request (Sec-Fetch-Site: {site.lower()}) and may not: add the "
            "page's origin to the setting cors_origins, and call with fetch in cors mode",
            code="cross_site_request",
            reason="cross_site",
        )

    def check_own(self, request: web.BaseRequest, *, needs_origin: bool) -> None:
        """Check that the gateway's own page caused a request, whatever ``cors_origins`` says; or a program.

        A program sends none of a browser's headers; with ``needs_origin`` it is refused as well.

        Raises:
            ApiError: 403.
        """
        headers = request.headers
        origin, site = headers.get("Origin"), headers.get("Sec-Fetch-Site", "").lower()
        if site in _FOREIGN_SITES or (origin is not None and not self.is_own(request, origin)):
            shown = _shown(site if origin is None else origin)
            self._hint("own_origin", "trusted_proxies", shown)
            raise ApiError(
                403,
                f"this route takes requests of the gateway's own pages only, not of {shown!r}. Behind a proxy that speaks "
                "https, name the proxy in trusted_proxies so that the gateway knows its own origin",
                code="cross_site_request" if origin is None else "origin_not_allowed",
                reason="cross_site" if origin is None else "origin",
            )
        if needs_origin and origin is None:
            raise ApiError(
                403,
                "a request with the console's cookie needs an Origin, which browsers send: a program sends a key "
                "(Authorization: Bearer <key>) instead",
                code="origin_not_allowed",
                reason="origin",
            )

    def passes(self, request: web.BaseRequest) -> bool:
        """Return whether a request would pass ``check``, without counting or logging it."""
        if self._foreign_host(request) is not None:
            return False
        origin = request.headers.get("Origin")
        return origin is None or self._cors.allows(origin) or self.is_own(request, origin)

    def is_own(self, request: web.BaseRequest, origin: str) -> bool:
        """Return whether an origin is the gateway's own: the scheme, host and port under which it was reached."""
        scheme = request.scheme
        own = {_origin_of(scheme, host) for host in _hosts_of(request)}
        return _without_default_port(origin.lower()) in own

    def _foreign_host(self, request: web.BaseRequest) -> str | None:
        """Return the first host of a request that the gateway does not answer to, None where there is none."""
        if self._any_host:
            return None
        hosts = _hosts_of(request)
        if not hosts and request.version >= (1, 1):
            return ""
        for host in hosts:
            if not self._is_allowed(host):
                return host
        return None

    def _judge_host(self, host: str) -> bool:
        if len(host) > _LONGEST_HOST or (found := _HOST.fullmatch(host)) is None:
            return False
        if found["ipv6"] is not None:
            return _is_ip(found["ipv6"])
        name = found["name"].lower().removesuffix(".")
        if name == "localhost" or name.endswith(".localhost"):
            return True
        return _is_ip(name) or name in self._names or name.endswith(self._suffixes)

    def _foreign_origin(self, origin: str) -> ApiError:
        shown = _shown(origin)
        self._hint("origin", "cors_origins", shown)
        return ApiError(
            403,
            f"web pages of the origin {shown!r} may not call this gateway: add the origin to the setting cors_origins. "
            "Behind a proxy that speaks https, name the proxy in trusted_proxies so that the gateway knows its own "
            "origin",
            code="origin_not_allowed",
            reason="origin",
        )

    def _hint(self, reason: str, setting: str, value: str) -> None:
        """Log a refusal and the setting that would allow the request, at most once a minute for each reason."""
        now = self._clock()
        if self._log is None or now - self._logged_at.get(reason, -_LOG_EVERY_S) < _LOG_EVERY_S:
            return
        self._logged_at[reason] = now
        self._log.warning("request refused by the browser guard", reason=reason, value=value, setting=setting)


def _hosts_of(request: web.BaseRequest) -> list[str]:
    """Return all hosts that a request names: in its header, in an absolute target, in a trusted proxy's header."""
    hosts = request.headers.getall("Host", [])
    if hosts and request.host != hosts[0]:
        return [*hosts, request.host]
    return hosts


def _origin_of(scheme: str, host: str) -> str:
    return _without_default_port(f"{scheme}://{host.lower()}")


def _without_default_port(origin: str) -> str:
    scheme = origin.partition("://")[0]
    return origin.removesuffix(_DEFAULT_PORTS.get(scheme, " "))


def _is_link_to_page(request: web.BaseRequest) -> bool:
    """Return whether the user followed a link to one of the readable pages."""
    headers = request.headers
    return (
        request.method in {"GET", "HEAD"}
        and headers.get("Sec-Fetch-Mode") == "navigate"
        and headers.get("Sec-Fetch-Dest") == "document"
        and request.path in PAGES
    )


def _is_ip(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def _shown(text: str) -> str:
    """Return a header's value in a form that is safe in a message."""
    cut = text[:_LONGEST_SHOWN]
    return "".join(character if character.isprintable() else "?" for character in cut)
