"""Request bodies: read within their limits, validated, and turned into tasks."""

import asyncio
import json
import re
from collections.abc import Mapping
from dataclasses import field
from typing import Any

import orjson
from aiohttp import web

from lcp_gateway.adapters.json_bytes import rewrite_object
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.purchase.order import SUBJECTS, Task, TaskKind, output_limit
from lcp_gateway.values import value


async def read_body(request: web.Request, timeout_s: float) -> bytes:
    """Return the whole body.

    Raises:
        ApiError: 415 for a compressed one, 413 for one that is too large, 408 for one that takes too long, 400 for one
            that cannot be read.
    """
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in {"", "identity"}:
        raise ApiError(
            415,
            "compressed request bodies are not supported",
            code="unsupported_content_encoding",
            reason="bad_request",
        )
    limit = request.client_max_size
    if request.content_length is not None and request.content_length > limit:
        raise _too_large(limit)
    try:
        if request.content.is_eof():
            if len(body := request.content.read_nowait()) > limit:
                raise _too_large(limit)
            return body
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


_ENCODINGS = ("float", "base64")
# The only ways to spell a letter of "model" as an escape: \u0064 … \u006f, and the capitals \u0044 … \u004f.
_ESCAPED_LETTER = re.compile(rb"\\u00[64]")


@value
class ParsedRequest:
    """A valid request: its task, and its body as a JSON object."""

    task: Task
    document: Mapping[str, Any] = field(repr=False)


def parse_task(kind: TaskKind, body: bytes) -> Task:
    """Return the task of a body, which stays as it is.

    Raises:
        ApiError: 400, naming the parameter.
    """
    return parse_request(kind, body).task


def parse_request(kind: TaskKind, body: bytes, default_model: str = "") -> ParsedRequest:
    """Return the task with its parsed body. ``default_model`` is put into a body that names no model.

    Raises:
        ApiError: 400, naming the parameter.
    """
    document = parse_object(body)
    if _may_repeat_model(body) and _top_level_keys(body).count("model") > 1:
        raise bad_request("the body names model more than once", "model", "duplicate_parameter")
    if default_model and document.get("model") is None and kind is not TaskKind.EMBEDDINGS:
        body = rewrite_object(body, {"model": json.dumps(default_model).encode("ascii")})
        document = {**document, "model": default_model}
    model = _model(document)
    _check_subject(document, SUBJECTS[kind])
    stream = document.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise bad_request("stream must be true or false", "stream", "invalid_type")
    if kind is TaskKind.EMBEDDINGS:
        _check_embedding(document)
        stream = False
    task = Task(kind, model, body, stream is True, output_limit(document))
    return ParsedRequest(task, document)


def parse_object(body: bytes) -> Mapping[str, Any]:
    """Parse a body that is a JSON object.

    Raises:
        ApiError: 400 for any other body.
    """
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        document = _parse_leniently(body, error)
    if not isinstance(document, dict):
        raise bad_request("the body must be a JSON object", code="invalid_json")
    return document


def _parse_leniently(body: bytes, error: orjson.JSONDecodeError) -> object:
    """Parse the escape of half a surrogate pair, which orjson refuses and other parsers accept.

    JavaScript's JSON.stringify writes one for a string cut in the middle of an emoji.
    """
    if b"\\ud" in body or b"\\uD" in body:
        try:
            return json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
        except (ValueError, RecursionError):
            pass
    # orjson's message holds the position, and nothing of the text.
    raise bad_request(f"the body is not valid JSON: {error.msg}", code="invalid_json") from None


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is not JSON")


def _model(document: Mapping[str, Any]) -> str:
    for key in document:
        # The daemon's JSON reader ignores the case of keys, so a second spelling could change the model that is sent.
        if key != "model" and key.casefold() == "model":
            raise bad_request('the body has a key that differs from "model" only in case', "model", "invalid_key")
    model = document.get("model")
    if model is None:
        raise bad_request("model is required", "model", "missing_required_parameter")
    if not isinstance(model, str):
        raise bad_request("model must be a string", "model", "invalid_type")
    if not model or model != model.strip():
        raise bad_request("model must not be empty or begin or end with white space", "model", "invalid_value")
    if not model.isprintable():
        raise bad_request("model holds unprintable characters", "model", "invalid_value")
    return model


def _check_subject(document: Mapping[str, Any], name: str) -> None:
    subject = document.get(name)
    if subject is None:
        raise bad_request(f"{name} is required", name, "missing_required_parameter")
    types = (list,) if name == "messages" else (list, str)
    if not isinstance(subject, types):
        kinds = "an array" if name == "messages" else "a string or an array"
        raise bad_request(f"{name} must be {kinds}", name, "invalid_type")
    if not subject:
        raise bad_request(f"{name} must not be empty", name, "invalid_value")


def _check_embedding(document: Mapping[str, Any]) -> None:
    encoding = document.get("encoding_format")
    if encoding is not None and encoding not in _ENCODINGS:
        raise bad_request("encoding_format must be float or base64", "encoding_format", "invalid_value")
    dimensions = document.get("dimensions")
    if dimensions is None:
        return
    if isinstance(dimensions, bool) or not isinstance(dimensions, int):
        raise bad_request("dimensions must be a whole number", "dimensions", "invalid_type")
    if dimensions < 1:
        raise bad_request("dimensions must be positive", "dimensions", "invalid_value")


def _may_repeat_model(body: bytes) -> bool:
    """Return, by a cheap test, whether the key may occur twice; for nearly every body it cannot."""
    return body.count(b'"model"') != 1 or _ESCAPED_LETTER.search(body) is not None


def _top_level_keys(body: bytes) -> list[str]:
    keys: list[str] = []

    def record(pairs: list[tuple[str, Any]]) -> None:
        # Called for every object, the outermost last.
        keys[:] = [key for key, _ in pairs]

    try:
        json.loads(body, object_pairs_hook=record)
    except RecursionError:
        raise bad_request("the body is nested too deeply", code="invalid_json") from None
    return keys
