"""A backend that forwards tasks to an OpenAI-compatible server (Ollama, vLLM, llama.cpp), bytes in and bytes out."""

import asyncio
import io
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

import aiohttp
import orjson

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.messages import CHAT, IDENTITY, RESPONSES
from lcp_gateway.node.ports import ComputeError

_PATHS: Final = {CHAT: "/chat/completions", RESPONSES: "/responses"}
_CONNECT_TIMEOUT_S = 10.0
_DISCOVERY_TIMEOUT_S = 10.0
# A list of thousands of models, with their descriptions.
_MAX_LIST_BYTES = 8 * 1024 * 1024
# aiohttp hands a longer body over from a stream rather than in one write.
_LONG_BODY_BYTES = 1024 * 1024
# Reading from the server stops at twice this: a peer that takes nothing stops the server.
_READ_BUFFER_BYTES = 64 * 1024
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)
_CODES: Final[dict[int, ErrorCode]] = {
    HTTPStatus.BAD_REQUEST: ErrorCode.UNSUPPORTED_PARAMS,
    HTTPStatus.UNAUTHORIZED: ErrorCode.PAYMENT_INVALID,
    HTTPStatus.FORBIDDEN: ErrorCode.PAYMENT_INVALID,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class BackendLimits:
    """How long a server may take, and how much it may send. A result as a whole has no limit in time once it has begun.

    A stream begins after the prompt was read, a whole result when all of it is computed. ``max_result_bytes`` is 16 MiB, four
    times what a requester takes by default.
    """

    stream_begin_s: float = 120.0
    whole_begin_s: float = 600.0
    idle_s: float = 60.0
    max_result_bytes: int = 16 * 1024 * 1024


class HttpBackend:
    """Posts each task's bytes to the server at ``base_url``, which ends where ``/chat/completions`` begins."""

    def __init__(self, base_url: str, api_key: str = "", *, limits: BackendLimits | None = None) -> None:
        self._base_url = base_url.rstrip("/")
        self._limits = limits or BackendLimits()
        # Compression would only be undone here: results travel on as identity.
        self._headers = {"Accept-Encoding": IDENTITY, "Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def models(self) -> tuple[str, ...]:
        """Return the models that the server lists.

        Raises:
            ComputeError: it does not answer, or with no such list.
        """
        timeout = aiohttp.ClientTimeout(total=_DISCOVERY_TIMEOUT_S)
        try:
            async with self._open().get(self._base_url + "/models", timeout=timeout, allow_redirects=False) as response:
                if response.status != HTTPStatus.OK:
                    raise _unavailable(f"status {response.status} from /models")
                document = orjson.loads(await _read_list(response))
        except _FAILURES as error:
            raise _unavailable(_name(error)) from error
        except orjson.JSONDecodeError:
            raise _unavailable("/models is not JSON") from None
        entries = document.get("data") if isinstance(document, dict) else None
        return tuple(
            entry["id"]
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        )

    async def run(
        self, *, job_id: bytes, task_kind: str, model: str, body: bytes, stream: bool
    ) -> AsyncGenerator[bytes, None]:
        """Post a task, and yield its result as it comes; see ``ports.Compute``."""
        del job_id, model
        is_empty = True
        begin_by = self._begin_by(stream)
        async with self._post(task_kind, body, begin_by) as response:
            if response.headers.get("Content-Encoding", IDENTITY) != IDENTITY:
                # It was not asked for, and results travel on under the name of identity.
                raise _unavailable("the result is compressed")
            async with aclosing(self._read(response, begin_by)) as chunks:
                async for chunk in chunks:
                    is_empty = False
                    yield chunk
        if is_empty:
            raise _unavailable("the result is empty")

    async def close(self) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _begin_by(self, stream: bool) -> float:
        limits = self._limits
        return asyncio.get_running_loop().time() + (limits.stream_begin_s if stream else limits.whole_begin_s)

    @asynccontextmanager
    async def _post(self, kind: str, body: bytes, begin_by: float) -> AsyncIterator[aiohttp.ClientResponse]:
        """Send a request and yield the server's answer, one of success; ``begin_by`` is a time of the loop's clock.

        At the end its connection is closed at once, unless the answer was read to its end.

        Raises:
            ComputeError: the server refused, redirected, or did not answer in time.
        """
        try:
            async with asyncio.timeout_at(begin_by):
                response = await self._open().post(
                    self._base_url + _PATHS[kind],
                    data=body if len(body) <= _LONG_BODY_BYTES else io.BytesIO(body),
                    allow_redirects=False,
                )
        except _FAILURES as error:
            raise _unavailable(_name(error)) from error
        try:
            if not HTTPStatus.OK <= response.status < HTTPStatus.MULTIPLE_CHOICES:
                code = _CODES.get(response.status, ErrorCode.RATE_LIMITED)
                # The server's own text may repeat the prompt.
                raise ComputeError(code, f"backend unavailable: status {response.status}")
            yield response
        finally:
            response.close()

    async def _read(self, response: aiohttp.ClientResponse, begin_by: float) -> AsyncGenerator[bytes, None]:
        """Yield each read of the server as a chunk."""
        limits, length = self._limits, 0
        clock = asyncio.get_running_loop().time
        try:
            while True:
                async with asyncio.timeout_at(clock() + limits.idle_s if length else begin_by):
                    chunk = await response.content.readany()
                if not chunk:
                    return
                length += len(chunk)
                if length > limits.max_result_bytes:
                    raise _unavailable(f"the result is longer than {limits.max_result_bytes} bytes")
                yield chunk
        except _FAILURES as error:
            raise _unavailable(f"broke off: {_name(error)}") from error

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers=self._headers,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
                connector=aiohttp.TCPConnector(limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER_BYTES,
            )
        return self._session


async def _read_list(response: aiohttp.ClientResponse) -> bytes:
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > _MAX_LIST_BYTES:
            raise _unavailable("/models is too long")
    return bytes(data)


def _unavailable(problem: str) -> ComputeError:
    return ComputeError(ErrorCode.RATE_LIMITED, f"backend unavailable: {problem}")


def _name(error: BaseException) -> str:
    """Return the kind of a failure; its text may hold an address or a part of the result."""
    return type(error).__name__
