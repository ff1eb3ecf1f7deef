"""A backend that forwards tasks to an OpenAI-compatible server (Ollama, vLLM, llama.cpp), bytes in and bytes out."""

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack

import aiohttp
import orjson

from lcp_gateway.node.compute.backend import IDENTITY, BackendUnavailable, ComputeResult, PaidTask
from lcp_gateway.node.tasks import TaskKind

_PATHS = {TaskKind.CHAT: "/chat/completions", TaskKind.RESPONSES: "/responses"}
_CONNECT_TIMEOUT_S = 10.0
_DISCOVERY_TIMEOUT_S = 10.0
_FAILURES = (aiohttp.ClientError, TimeoutError, OSError)


class HttpBackend:
    """Posts each task's bytes to the server at ``base_url``, which ends where ``/chat/completions`` begins."""

    def __init__(self, base_url: str, api_key: str = "", *, discover: bool = True) -> None:
        self._base_url = base_url.rstrip("/")
        self._discover = discover
        # Compression would only be undone here: results travel on as identity.
        self._headers = {"Accept-Encoding": "identity", "Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> tuple[str, ...]:
        """Open the connection pool and, unless models were named, ask the server for its own.

        Raises:
            BackendUnavailable: the server does not say which models it has.
        """
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            # A slow result is no failure; the quote's expiry and the caller's deadline end it.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
            connector=aiohttp.TCPConnector(limit=0),
        )
        if not self._discover:
            return ()
        try:
            return await self._list_models(self._session)
        except BackendUnavailable:
            await self.close()
            raise

    async def compute(self, paid: PaidTask) -> ComputeResult:
        """Post a task, and return the result as it comes."""
        if self._session is None:
            raise BackendUnavailable("not started")
        stack = AsyncExitStack()
        try:
            response = await stack.enter_async_context(
                self._session.post(self._base_url + _PATHS[paid.task.kind], data=paid.task.body, allow_redirects=False)
            )
        except _FAILURES as error:
            raise BackendUnavailable(_name(error)) from error
        if not response.ok or response.status >= 300:  # noqa: PLR2004 - a redirect is no answer either
            await stack.aclose()
            raise BackendUnavailable(f"status {response.status}")
        return ComputeResult(
            response.headers.get("Content-Type", "application/octet-stream"),
            response.headers.get("Content-Encoding", IDENTITY),
            _read(response),
            stack.aclose,
        )

    async def close(self) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _list_models(self, session: aiohttp.ClientSession) -> tuple[str, ...]:
        timeout = aiohttp.ClientTimeout(total=_DISCOVERY_TIMEOUT_S)
        try:
            async with session.get(self._base_url + "/models", timeout=timeout) as response:
                if not response.ok:
                    raise BackendUnavailable(f"status {response.status} from /models")
                document = orjson.loads(await response.read())
        except _FAILURES as error:
            raise BackendUnavailable(_name(error)) from error
        except orjson.JSONDecodeError:
            raise BackendUnavailable("/models is not JSON") from None
        entries = document.get("data") if isinstance(document, dict) else None
        return tuple(
            entry["id"]
            for entry in (entries if isinstance(entries, list) else ())
            if isinstance(entry, dict) and isinstance(entry.get("id"), str) and entry["id"]
        )


async def _read(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    """Yield each read of the server as a chunk."""
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except _FAILURES as error:
        raise BackendUnavailable(f"broke off: {_name(error)}") from error


def _name(error: BaseException) -> str:
    """Return the kind of a failure; its text may hold an address or a part of the result."""
    return type(error).__name__
