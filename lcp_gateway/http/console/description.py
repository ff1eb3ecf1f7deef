"""GET /api/console: what a page needs to know before sign-in; nothing in it is confidential."""

from collections.abc import Mapping
from typing import Literal

from aiohttp import web

from lcp_gateway.__about__ import __version__
from lcp_gateway.http.console.cookies import Cookies
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.fields import json_response


class DescriptionRoutes:
    """Describes the gateway to its console."""

    def __init__(self, cookies: Cookies | None, *, facts: Mapping[str, object]) -> None:
        """``cookies`` is None where no sign-in is needed; ``facts`` are those of the settings."""
        self._cookies = cookies
        self._facts = facts

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /api/console."""
        context = request[CONTEXT]
        context.is_shareable = False
        # The description does not repeat a host name that another site made resolve to this address.
        is_known = self._cookies is not None or context.may_read_details
        return json_response(
            {
                "object": "lcp.console",
                "version": __version__,
                "signin": self._signin(request),
                **self._facts,
                "base_url": f"{request.scheme}://{request.host}/v1" if is_known else "/v1",
            }
        )

    def _signin(self, request: web.Request) -> Literal["none", "key", "off"]:
        if self._cookies is None:
            return "none"
        return "off" if self._cookies.form(request) is None else "key"
