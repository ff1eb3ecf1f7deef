"""Documents of the gateway's own, as JSON answers."""

import orjson
from aiohttp import web


def json_response(document: object, *, status: int = 200) -> web.Response:
    """Give a document as an answer."""
    return web.Response(status=status, body=orjson.dumps(document), content_type="application/json")
