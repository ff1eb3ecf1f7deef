"""CORS: the origins whose web pages may call; none unless the operator names them."""

from collections.abc import Iterable

from aiohttp import web

_ALLOW_METHODS = "GET, POST, PATCH, DELETE, OPTIONS"
_EXPOSED = (
    "x-request-id, openai-processing-ms, retry-after, x-should-retry, X-Lcp-Payment, X-Lcp-Peer-Id, "
    "X-Lcp-Job-Id, X-Lcp-Call-Id, X-Lcp-Price-Msat, X-Lcp-Terms-Hash, X-Lcp-Runner-Up-Msat, X-Lcp-Routing, X-Lcp-Adapter, "
    "X-Lcp-Charged-Msat, X-Lcp-Balance-Msat, WWW-Authenticate, x-ratelimit-limit-requests, "
    "x-ratelimit-limit-tokens, x-ratelimit-remaining-requests, x-ratelimit-remaining-tokens, "
    "x-ratelimit-reset-requests, x-ratelimit-reset-tokens"
)
_MAX_AGE_S = 600


_ANY_HOST = "://*"


class Cors:
    """The origins that may call; ``*`` means any, ``app://*`` any with a scheme that only programs have."""

    def __init__(self, origins: Iterable[str]) -> None:
        self._origins = frozenset(origin.lower() for origin in origins)
        self._schemes = frozenset(
            origin.removesuffix(_ANY_HOST) for origin in self._origins if origin.endswith(_ANY_HOST)
        )

    def allows(self, origin: str) -> bool:
        """Return whether pages of an origin may call."""
        origins = self._origins
        if not origins:
            return False
        if "*" in origins or (origin := origin.lower()) in origins:
            return True
        return origin.partition("://")[0] in self._schemes

    def headers_for(self, origin: str | None) -> dict[str, str]:
        """Return the headers that let pages of ``origin`` read a response; none for an origin that may not."""
        if not self._origins or origin is None:
            return {}
        if "*" in self._origins:
            return {"Access-Control-Allow-Origin": "*", "Access-Control-Expose-Headers": _EXPOSED}
        if self.allows(origin):
            return {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": _EXPOSED, "Vary": "Origin"}
        return {"Vary": "Origin"}

    def preflight(self, request: web.Request) -> web.Response | None:
        """Return the response to a preflight of an allowed origin, None for any other request."""
        if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
            return None
        if "Access-Control-Allow-Origin" not in self.headers_for(request.headers.get("Origin")):
            return None
        asked = request.headers.get("Access-Control-Request-Headers", "authorization, content-type")
        headers = {
            "Access-Control-Allow-Methods": _ALLOW_METHODS,
            "Access-Control-Allow-Headers": asked,
            "Access-Control-Max-Age": str(_MAX_AGE_S),
        }
        if request.headers.get("Access-Control-Request-Private-Network") == "true":
            # A page on the internet asks for an address of a private network.
            headers["Access-Control-Allow-Private-Network"] = "true"
        return web.Response(status=204, headers=headers)
