"""GET /openapi.json: the description is made of the route table once, when it is first asked for."""

import re
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Final

import orjson
from aiohttp import web

from lcp_gateway.__about__ import __version__
from lcp_gateway.http.openapi.operations import JSON, OPERATIONS, Operation
from lcp_gateway.http.openapi.schemas import SCHEMAS, ref
from lcp_gateway.http.permissions import METRICS, scopes_for
from lcp_gateway.http.queries import QueryParameter

PATH: Final = "/openapi.json"

_ABOUT: Final = (
    "The routes of the gateway itself: accounts, keys, wallet, books, offers and administration. Those of OpenAI's API, under "
    "/v1, are as OpenAI describes them. Amounts are millisatoshi; lists are newest first, in pages by `limit` and `after`. "
    "An error is an OpenAI error object. A browser that is signed in sends its cookie in place of a key, and with every "
    "method but GET an `Origin` and `Content-Type: application/json`."
)
# Those that need no credential: they are how a client gets one, or show no account's data.
_OPEN: Final = frozenset({("GET", "/api/console"), ("POST", "/api/session"), ("POST", "/api/register")})
_READINESS: Final = "/readyz"
# A node that dials in has a token of its own.
_OPEN_PATHS: Final = frozenset({"/healthz", _READINESS, "/api/nodes/connect", PATH})
_OPENAI: Final = "/v1"
_RECEIPTS: Final = "/v1/receipts/"
_NOT_DESCRIBED: Final = ("/api/agent/", "/console")
_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
_DESCRIPTION: Final = re.compile(r"Serve [^:]*?: (.*)", re.DOTALL)
_PATH_SCHEMAS: Final[Mapping[str, Mapping[str, Any]]] = {
    "form": {"type": "string", "enum": ["svg", "png"]},
    "job_id": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
    "id": {"type": "string", "pattern": "^[A-Za-z0-9_.-]{1,64}$"},
}
_ERRORS: Final[Mapping[int, str]] = {
    400: "The request is wrong; `param` names the field or parameter.",
    401: "The credential is missing or not valid.",
    402: "The balance does not cover it.",
    403: "The credential has not the scope, or a page of another origin asks.",
    404: "There is none of this id, or it is another's.",
    409: "Its state does not allow it.",
    415: "The body is not JSON.",
    426: "It takes a WebSocket.",
    428: "The cookie alone does not confirm what cannot be undone.",
    429: "Too many at one time, or in a while.",
    503: "The database, or the node, cannot be asked now.",
}
_OF_CREDENTIALS: Final = (401, 403, 428)


class ApiDescription:
    """Serves the description of an application, whose routes it may be one of."""

    def __init__(self) -> None:
        self._app: web.Application | None = None
        self._body: bytes | None = None

    def add_to(self, app: web.Application) -> None:
        """Add the route; the application may get further ones until it serves."""
        self._app = app
        app.router.add_get(PATH, self.get)

    async def get(self, _request: web.Request) -> web.Response:
        """Serve GET /openapi.json: this description."""
        if self._body is None and self._app is not None:
            self._body = orjson.dumps(describe(self._app))
        return web.Response(body=self._body, content_type=JSON)


def describe(app: web.Application) -> dict[str, Any]:
    """Return the description of an application's own routes, in OpenAPI 3.1."""
    paths: dict[str, dict[str, Any]] = {}
    for method, path, handler in own_routes(app):
        operation = OPERATIONS.get((method, path))
        if operation is not None:
            paths.setdefault(path, {})[method.lower()] = _operation(method, path, handler, operation)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lcp-gateway", "version": __version__, "description": _ABOUT},
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(SCHEMAS), "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
    }


def own_routes(app: web.Application) -> Iterator[tuple[str, str, Any]]:
    """Yield method, path and handler of each route that is the gateway's own rather than one of OpenAI's."""
    for route in app.router.routes():
        path = "" if route.resource is None else route.resource.canonical
        is_openais = path.startswith(_OPENAI) and not path.startswith(_RECEIPTS)
        if path in {"", "/"} or is_openais or path.startswith(_NOT_DESCRIBED) or route.method in {"HEAD", "*"}:
            continue
        yield route.method, path, route.handler


def _operation(method: str, path: str, handler: Any, operation: Operation) -> dict[str, Any]:
    is_open = (method, path) in _OPEN or path in _OPEN_PATHS
    summary, description = _texts(handler, method, path)
    described: dict[str, Any] = {
        "tags": [operation.tag],
        "operationId": _id(method, path),
        "summary": summary,
        "parameters": [*_path_parameters(path), *map(_query_parameter, operation.query), *_headers(operation)],
        "responses": _responses(operation, method, path, is_open=is_open),
        "security": [] if is_open else [{"key": []}],
    }
    if not is_open and path != METRICS:
        scopes = ", ".join(sorted(scope.value for scope in scopes_for(method, path)))
        description = f"{description}\n\nNeeds one of the scopes: {scopes}.".strip()
    if description:
        described["description"] = description
    if operation.body is not None:
        described["requestBody"] = {
            "required": bool(operation.body.get("required")),
            "content": {JSON: {"schema": operation.body}},
        }
    return described


def _texts(handler: Any, method: str, path: str) -> tuple[str, str]:
    """Return the summary and the description that a handler's docstring has."""
    text = (getattr(handler, "__doc__", None) or "").strip()
    found = _DESCRIPTION.match(text)
    words = found[1] if found else ""
    first, _, rest = words.partition("\n\n")
    summary = " ".join(first.split()) or f"{method} {path}"
    return summary[0].upper() + summary[1:], " ".join(rest.split())


def _id(method: str, path: str) -> str:
    words = re.findall(r"[a-z0-9]+", path.lower())
    return "_".join([method.lower(), *words])


def _path_parameters(path: str) -> Iterator[dict[str, Any]]:
    for name in _PARAMETER.findall(path):
        yield {"name": name, "in": "path", "required": True, "schema": _PATH_SCHEMAS[name]}


def _query_parameter(parameter: QueryParameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": "query",
        "required": False,
        "description": parameter.about,
        "schema": parameter.schema,
    }


def _headers(operation: Operation) -> Iterator[dict[str, Any]]:
    for name, about in (operation.headers or {}).items():
        yield {"name": name, "in": "header", "required": False, "description": about, "schema": {"type": "string"}}


def _responses(operation: Operation, method: str, path: str, *, is_open: bool) -> dict[str, Any]:
    good = {media: {"schema": operation.returns if media == JSON else {"type": "string"}} for media in operation.media}
    worked: dict[str, Any] = {"description": "It worked."} | ({"content": good} if good else {})
    responses: dict[str, Any] = {str(operation.status): worked}
    statuses = {400, 429, 503, *(() if is_open else _OF_CREDENTIALS), *operation.errors}
    if is_open:
        # A page of another origin is refused there as well, and a wrong key at the sign-in.
        statuses |= {401, 403}
    if "{" in path:
        statuses.add(404)
    if method != "GET":
        # With the cookie, a body of another type is one that a form could send.
        statuses.add(415)
    if path.startswith(("/api/wallet", "/api/account")):
        statuses |= {404, 409}
    for status in sorted(statuses):
        if status == operation.status:
            continue
        if status < HTTPStatus.MULTIPLE_CHOICES:
            responses[str(status)] = {"description": "It was made before.", "content": good}
            continue
        is_report = path == _READINESS and status == HTTPStatus.SERVICE_UNAVAILABLE
        schema = ref("Readiness") if is_report else ref("Error")
        responses[str(status)] = {"description": _ERRORS[status], "content": {JSON: {"schema": schema}}}
    return responses
