"""A backend: an OpenAI-compatible server, asked at the address of the settings and nowhere else."""

import io
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from http import HTTPStatus
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

import aiohttp
import orjson

from lcp_gateway.adapters.model_list import BadModelList, ListedModel, read_model_list
from lcp_gateway.node_client.options import BackendOptions
from lcp_gateway.node_protocol.messages import Failure

PATHS: Final[Mapping[str, str]] = MappingProxyType(
    {"chat": "/chat/completions", "responses": "/responses", "completions": "/completions", "embeddings": "/embeddings"}
)
"""The route of each kind of task, below the base URL."""

_CONNECT_TIMEOUT_S = 5.0
_LIST_TIMEOUT_S = 10.0
_MAX_LIST_BYTES = 8 * 1024 * 1024
_MAX_ERROR_BYTES = 64 * 1024
_LONG_BODY_BYTES = 1024 * 1024
# Reading stops at twice this: a client that does not read then stops the backend.
_READ_BUFFER_BYTES = 64 * 1024
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
_OWN_SERVER = "lcp-gateway"


class BackendFailed(Exception):
    """The backend did not give a result; ``failure`` is what the gateway is told, without addresses and keys."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


UNAVAILABLE: Final = Failure(503, "backend_unavailable", "the node's backend does not answer")


class Backend:
    """One server. It is asked with no other headers than these, and a redirect is an error."""

    def __init__(self, options: BackendOptions) -> None:
        self.options = options
        self._session: aiohttp.ClientSession | None = None

    async def list_models(self, *, skip_gateways: bool = False) -> tuple[ListedModel, ...] | None:
        """Return the models that it lists; None where it is away, or has no list.

        ``skip_gateways`` leaves out a server that is a gateway itself: it was not named, but found on its port.
        """
        try:
            async with self._open().get(
                self.options.base_url + "/models",
                allow_redirects=False,
                timeout=aiohttp.ClientTimeout(total=_LIST_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
            ) as response:
                if response.status != HTTPStatus.OK:
                    return None
                if skip_gateways and response.headers.get("Server", "").startswith(_OWN_SERVER):
                    return None
                body = await _read_at_most(response, _MAX_LIST_BYTES)
            return read_model_list(body)
        except (*_FAILURES, BadModelList):
            return None

    @asynccontextmanager
    async def post(self, kind: str, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield the answer, whose status is one of success.

        Raises:
            BackendFailed: it refused the request, or did not answer.
        """
        try:
            response = await self._open().post(
                self.options.base_url + PATHS[kind],
                data=body if len(body) <= _LONG_BODY_BYTES else io.BytesIO(body),
                allow_redirects=False,
                # The gateway says how long the whole may take.
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT_S),
            )
        except _FAILURES:
            raise BackendFailed(UNAVAILABLE) from None
        try:
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                raise BackendFailed(await self._failure(response))
            yield response
        finally:
            response.close()

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _failure(self, response: aiohttp.ClientResponse) -> Failure:
        if response.status < HTTPStatus.BAD_REQUEST:
            return Failure(502, "backend_redirects", "the node's backend redirects, which is not followed")
        if response.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return Failure(503, "backend_refuses", "the node's backend refuses the node's key")
        try:
            text = await _read_at_most(response, _MAX_ERROR_BYTES)
        except _FAILURES:
            text = b""
        message, code = _message_and_code(text)
        hidden = (self.options.api_key, urlsplit(self.options.base_url).netloc)
        for secret in filter(None, hidden):
            message = message.replace(secret, "[redacted]")
        wait = response.headers.get("Retry-After", "")
        return Failure(
            response.status,
            code,
            message or f"the node's backend answered with HTTP status {response.status}",
            min(float(wait), 3_600.0) if wait.isascii() and wait.isdigit() else 0.0,
        )

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            headers = {
                "Content-Type": "application/json",
                # Compression would only be undone: results travel as they are.
                "Accept-Encoding": "identity",
                "User-Agent": _OWN_SERVER,
            }
            if self.options.api_key:
                headers["Authorization"] = f"Bearer {self.options.api_key}"
            self._session = aiohttp.ClientSession(
                headers=headers,
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                trust_env=False,
                read_bufsize=_READ_BUFFER_BYTES,
            )
        return self._session


async def _read_at_most(response: aiohttp.ClientResponse, limit: int) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk[: limit - len(data)]
        if len(data) >= limit:
            break
    return bytes(data)


def _message_and_code(text: bytes) -> tuple[str, str]:
    try:
        document = orjson.loads(text)
    except orjson.JSONDecodeError:
        return "", ""
    error = document.get("error", document) if isinstance(document, dict) else None
    if isinstance(error, str):
        return error, ""
    if not isinstance(error, dict):
        return "", ""
    message, code = error.get("message"), error.get("code")
    return message if isinstance(message, str) else "", code if isinstance(code, str) else ""
