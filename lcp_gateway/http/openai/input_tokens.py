"""POST /v1/responses/input_tokens: how many tokens a request would have. Spends nothing: no peer is asked."""

import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from lcp_gateway.adapters.json_bytes import rewrite_object
from lcp_gateway.adapters.splice import replace_model
from lcp_gateway.http.context import CONTEXT, RequestContext
from lcp_gateway.http.errors import PAYMENT_HEADER, bad_request
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.admission import Admission
from lcp_gateway.http.openai.request_body import parse_object, read_body
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.states import Verdict
from lcp_gateway.responses.request_options import read_options
from lcp_gateway.routing.offers import Offers

COUNT_HEADER = "X-Lcp-Token-Count"
"""``exact`` for a count by a node that has the model, ``estimate`` for one by the gateway."""

_KIND = TaskKind.RESPONSES


@dataclass(frozen=True, slots=True, kw_only=True)
class InputTokenRoutes:
    """Counts tokens: a virtual node that offers the model is asked first, then the gateway estimates.

    ``ask`` returns the count of a node, by its provider id and within a time, or None.

    ``resolve`` returns the real name behind an alias. ``expand`` puts the earlier turns before the input of an owner's
    body that builds on a response of this id, and raises an ``ApiError`` where that is missing. ``ask_timeout_s`` is for
    all nodes together.
    """

    ask: Callable[[str, bytes, float], Awaitable[int | None]]
    offers: Callable[[], Offers]
    resolve: Callable[[str], str]
    admission: Admission
    expand: Callable[[str, bytes, str], Awaitable[bytes]]
    estimate: Callable[[Mapping[str, Any]], int]
    default_model: str
    read_timeout_s: float
    ask_timeout_s: float

    async def count(self, request: web.Request) -> web.Response:
        """Serve POST /v1/responses/input_tokens."""
        context = request[CONTEXT]
        context.operation = "token count"
        body = await read_body(request, self.read_timeout_s)
        context.request_bytes = len(body)
        document = parse_object(body)
        _check_input(document)
        context.model = _model(document) or self.default_model
        previous = read_options(_KIND, document).previous_response_id
        if previous is not None:
            body = await self.expand(context.key_id, body, previous)
            document = parse_object(body)
        headers = {PAYMENT_HEADER: Verdict.NONE.value, COUNT_HEADER: "exact"}
        tokens = None
        if context.model:
            tokens, provider_id = await self._counted(context, body, document)
            headers["X-Lcp-Peer-Id"] = provider_id
        if tokens is None:
            tokens = self.estimate(document)
            headers[COUNT_HEADER] = "estimate"
            headers.pop("X-Lcp-Peer-Id", None)
        response = json_response({"object": "response.input_tokens", "input_tokens": tokens})
        response.headers.update(headers)
        return response

    async def _counted(
        self, context: RequestContext, body: bytes, document: Mapping[str, Any]
    ) -> tuple[int | None, str]:
        """Return the count of the first node that can count, and its provider id.

        Raises:
            ApiError: the caller's key may not buy the model.
        """
        task = Task(kind=_KIND, model=context.model, body=body, stream=False)
        self.admission.order(context.caller, task, request_id=context.request_id, limit_msat=None)
        real = self.resolve(context.model)
        ids = [
            entry.provider.peer_id
            for entry in self.offers().by_kind[_KIND]
            if entry.model == real and entry.provider.source is ProviderSource.NODE
        ]
        if not ids:
            return None, ""
        asked = _with_model(body, document, real)
        deadline = time.monotonic() + self.ask_timeout_s
        for provider_id in ids:
            left_s = deadline - time.monotonic()
            if left_s <= 0:
                break
            tokens = await self.ask(provider_id, asked, left_s)
            if tokens is not None:
                return tokens, provider_id
        return None, ""


def _model(document: Mapping[str, Any]) -> str:
    model = document.get("model")
    if model is None:
        return ""
    if not isinstance(model, str):
        raise bad_request("model must be a string", "model", "invalid_type")
    if not model.isprintable() or not model or model != model.strip():
        raise bad_request("model must be a name", "model", "invalid_value")
    return model


def _check_input(document: Mapping[str, Any]) -> None:
    if not isinstance(document.get("input"), str | list | None):
        raise bad_request("input must be a string or an array", "input", "invalid_type")


def _with_model(body: bytes, document: Mapping[str, Any], model: str) -> bytes:
    """Return the body with the model's real name."""
    named = document.get("model")
    if named == model:
        return body
    if named is None:
        return rewrite_object(body, {"model": json.dumps(model).encode("ascii")})
    try:
        return replace_model(body, model)
    except ValueError:
        raise bad_request("the body names model more than once", "model", "duplicate_parameter") from None
