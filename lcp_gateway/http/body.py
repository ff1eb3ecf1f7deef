"""Reads a request's body: within its limits of size and time, and only as it is."""

import asyncio

from aiohttp import web

from lcp_gateway.http.errors import ApiError, bad_request


async def read_body(request: web.Request, timeout_s: float) -> bytes:
    """Give the whole body.

    Raises:
        ApiError: 415 for a compressed one, 413 for one that is too large, 408 for one that takes too long, 400 for one
            that cannot be read.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise ApiError(
            415,
            "compressed request bodies are not taken",
            code="unsupported_content_encoding",
            reason="bad_request",
        )
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    try:
        if request.content.is_eof():
            return await request.read()
        async with asyncio.timeout(timeout_s):
            return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(limit) from None
    except TimeoutError:
        raise ApiError(
            408,
            "the request's body took too long",
            code="request_timeout",
            retry=True,
            reason="bad_request",
            headers={"Connection": "close"},
        ) from None
    except web.RequestPayloadError:
        raise bad_request("the request's body cannot be read", code="malformed_request") from None


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413,
        f"the request's body is larger than {limit} bytes",
        code="request_too_large",
        reason="too_large",
        headers={"Connection": "close"},
    )
