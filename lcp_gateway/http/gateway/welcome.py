"""GET / and /v1: a short description for people who open the address in a browser, and for clients."""

from html import escape

from aiohttp import web

from lcp_gateway.__about__ import __version__
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.fields import json_response

_ENDPOINTS = (
    "POST /v1/chat/completions",
    "POST /v1/responses",
    "POST /v1/completions",
    "POST /v1/embeddings",
    "GET /v1/models",
    "POST /api/models/route",
    "GET /readyz",
)
_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>lcp-gateway</title>
<h1>lcp-gateway {version}</h1>
<p>{about}</p>
<p>Base URL for OpenAI clients: <code>{base_url}</code> (model <code>auto</code>, or one of <a href="/v1/models">/v1/models</a>).
API key: {key}.</p>
<ul>
{endpoints}
</ul>
"""
_ABOUT = "This gateway takes OpenAI requests and buys the answers from compute providers over the Lightning Network."


class WelcomeRoutes:
    """Serves the description; it needs no key and holds nothing confidential."""

    def __init__(self, *, asks_for_key: bool, has_console: bool = False) -> None:
        """``has_console`` sends browsers that ask for ``/`` to the console."""
        self._has_console = has_console
        self._key = "one of this gateway's keys" if asks_for_key else "any, none is asked for"

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET / and GET /v1: a page for browsers, JSON for everything else."""
        accepts_html = "text/html" in request.headers.get("Accept", "")
        if accepts_html and self._has_console and request.path == "/":
            headers = {"Location": "/console/", "Vary": "Accept", "Cache-Control": "no-store"}
            return web.Response(status=303, headers=headers)
        # The page does not repeat a host name that another site made resolve to this address.
        base_url = f"{request.scheme}://{request.host}/v1" if request[CONTEXT].may_read_details else "/v1"
        if accepts_html:
            endpoints = "\n".join(f"<li><code>{escape(one)}</code></li>" for one in _ENDPOINTS)
            page = _PAGE.format(
                version=escape(__version__),
                about=escape(_ABOUT),
                base_url=escape(base_url),
                key=escape(self._key),
                endpoints=endpoints,
            )
            return web.Response(text=page, content_type="text/html", headers={"Vary": "Accept"})
        response = json_response(
            {
                "object": "lcp.welcome",
                "name": "lcp-gateway",
                "version": __version__,
                "about": _ABOUT,
                "base_url": base_url,
                "api_key": self._key,
                "model": "auto",
                "endpoints": _ENDPOINTS,
            }
        )
        response.headers["Vary"] = "Accept"
        return response
