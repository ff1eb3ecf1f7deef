"""The OpenAI-compatible server in front of the loaded models: it finds a request's model and passes the bytes on, both ways."""

import hmac
import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final

import aiohttp
from aiohttp import web

from lcp_gateway.local_models.options import LocalModelOptions
from lcp_gateway.local_models.pool import ModelPool, Unavailable

ROUTES: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses")
_BODY_BYTES_MAX = 64 * 1024 * 1024


class ModelRoutes:
    """The handlers. Every request needs ``key`` as a bearer token: other users of the machine reach the port too."""

    def __init__(self, options: LocalModelOptions, pool: ModelPool, session: aiohttp.ClientSession, key: str) -> None:
        self._names = [model.name for model in options.models]
        self._pool = pool
        self._session = session
        self._authorization = f"Bearer {key}"

    def application(self) -> web.Application:
        """Return the application that serves the routes."""
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        application.router.add_get("/v1/models", self.list_models)
        for path in ROUTES:
            application.router.add_post(path, self.forward)
        return application

    async def list_models(self, request: web.Request) -> web.Response:
        """Answer with every model, loaded or not, in OpenAI's shape; ``status`` says what it is doing."""
        if not self._admitted(request):
            return _refused()
        states = self._pool.states()
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "local", "status": states[name]}
            for name in self._names
        ]
        return web.json_response({"object": "list", "data": models})

    async def forward(self, request: web.Request) -> web.StreamResponse:
        """Pass a request on to its model, which is loaded first where it is not, and its answer back as it comes."""
        if not self._admitted(request):
            return _refused()
        body = await request.read()
        name = _model_of(body)
        if name not in self._names:
            return _error(404, f"there is no local model {name!r:.80}", "model_not_found")
        try:
            async with self._pool.use(name) as server:
                headers = {**server.headers, "content-type": "application/json"}
                async with self._session.post(
                    server.base_url + request.path, data=body, headers=headers, allow_redirects=False
                ) as answer:
                    return await _relay(request, answer)
        except Unavailable as error:
            seconds = str(math.ceil(error.retry_after_s))
            return _error(503, str(error), "model_not_available", {"retry-after": seconds})
        except aiohttp.ClientConnectionError:
            return _error(502, f"llama-server of {name!r:.80} ended before it answered", "model_ended")

    def _admitted(self, request: web.Request) -> bool:
        given = request.headers.get("authorization", "")
        return hmac.compare_digest(given.encode(), self._authorization.encode())


async def _relay(request: web.Request, answer: aiohttp.ClientResponse) -> web.StreamResponse:
    response = web.StreamResponse(status=answer.status, headers={"content-type": answer.content_type})
    await response.prepare(request)
    try:
        async for block in answer.content.iter_any():
            await response.write(block)
    except aiohttp.ClientError:
        # A cut answer must not look like a whole one: without the last chunk its reader knows.
        if request.transport is not None:
            request.transport.abort()
        return response
    await response.write_eof()
    return response


def _model_of(body: bytes) -> str:
    try:
        found = json.loads(body)
    except ValueError:
        return ""
    model = found.get("model") if isinstance(found, dict) else None
    return model if isinstance(model, str) else ""


def _refused() -> web.Response:
    return _error(401, "a wrong key, or none", "invalid_api_key")


def _error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> web.Response:
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    body = {"error": {"message": message, "type": kind, "param": None, "code": code}}
    return web.json_response(body, status=status, headers=headers)
