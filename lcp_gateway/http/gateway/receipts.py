"""GET /v1/receipts/{job_id}: a purchase as a document that any party can verify."""

import re
from collections.abc import Awaitable, Callable, Mapping

import orjson
from aiohttp import web

from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.errors import ApiError

ReceiptSource = Callable[[bytes, str], Awaitable[Mapping[str, object] | None]]
"""Returns the receipt of a job (32 bytes) that this credential bought, or None."""

_JOB_ID = re.compile(r"[0-9a-f]{64}")


class ReceiptRoutes:
    """Serves receipts from the journal."""

    def __init__(self, source: ReceiptSource) -> None:
        self._source = source

    async def get(self, request: web.Request) -> web.Response:
        """Serve GET /v1/receipts/{job_id}."""
        job_id = request.match_info["job_id"].lower()
        found = None
        if _JOB_ID.fullmatch(job_id):
            found = await self._source(bytes.fromhex(job_id), request[CONTEXT].key_id)
        if found is None:
            raise ApiError(404, "there is no such receipt", code="receipt_not_found", param="job_id")
        return web.Response(body=orjson.dumps(found), content_type="application/json")
