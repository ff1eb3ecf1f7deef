"""GET, DELETE and cancel of /v1/responses/{id}: stored responses and those that run in the background."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress
from typing import Any

from aiohttp import web

from lcp_gateway.adapters.json_bytes import object_or_none
from lcp_gateway.adapters.sse import is_readable_stream
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.error_mapping import map_error
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.background import BackgroundResponses, headers_of
from lcp_gateway.http.openai.history import document_of, not_stored, page_response
from lcp_gateway.http.openai.response import EVENTS, JSON, STREAM_HEADERS
from lcp_gateway.http.openai.sse_relay import SseRelay
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.responses.background import BackgroundJob, LeftJob, ResponseStatus
from lcp_gateway.responses.history import join_segments
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.replay import ReplayedStream, end_event, to_events
from lcp_gateway.responses.stored_items import StoredItems

# A stored stream is sent in pieces of this size, so that other streams go on meanwhile.
_PIECE_BYTES = 65_536
_TEXT_PARTS = {"assistant": "output_text"}
_FAILED = (ResponseStatus.FAILED, ResponseStatus.CANCELLED)
_BEGINNING = -1
"""``starting_after`` of a replay from the first event."""


class ResponseRoutes:
    """Serves stored and background responses to their clients; an id of another credential is unknown here."""

    def __init__(
        self, store: StoredItems, jobs: BackgroundResponses, *, heartbeat_s: float, relay_limit_s: float
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._heartbeat_s = heartbeat_s
        self._relay_limit_s = relay_limit_s

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /v1/responses/{response_id}, also with ``stream`` and ``starting_after``."""
        stream, starting_after = _read_stream_query(request.query)
        owner, response_id = _owner_and_id(request)
        return await self._show(request, owner, response_id, stream, starting_after)

    async def _show(
        self, request: web.Request, owner: str, response_id: str, stream: bool, starting_after: int
    ) -> web.StreamResponse:
        job = self._jobs.find(owner, response_id)
        if job is not None:
            if stream:
                return await self.follow(request, job, starting_after)
            return _json(*await self._jobs.given(job))
        item: Item | None = await self._store.get(owner, ItemKind.RESPONSE, response_id)
        left = None if item is None else await self._jobs.final_state(owner, item)
        if item is not None and left is None:
            if stream:
                events = _events_of(item, starting_after)
                headers = item.headers
                return await self._stream(request, events, lambda: headers)
            return _json(document_of(item, "response"), item.headers)
        left = left or await self._jobs.left(owner, response_id)
        if left is None:
            if self._jobs.may_be_elsewhere(response_id):
                # It may have ended at another process in between.
                item = await self._store.get(owner, ItemKind.RESPONSE, response_id)
            if item is None:
                raise self._not_found()
            left = LeftJob(document_of(item, "response"), item.headers)
        if stream and left.runs:
            events = self._events_elsewhere(owner, response_id, left, starting_after)
            return await self._stream(request, events, lambda: left.headers)
        if stream:
            events = _events_in(left.document, starting_after)
            return await self._stream(request, events, lambda: left.headers)
        return _json(left.document, left.headers)

    async def delete(self, request: web.Request) -> web.Response:
        """Serve DELETE /v1/responses/{response_id}; a job that runs is cancelled first."""
        owner, response_id = _owner_and_id(request)
        job = self._jobs.find(owner, response_id)
        if job is not None:
            await self._jobs.cancel(job)
        else:
            await self._jobs.end_elsewhere(owner, response_id)
        found = await self._store.remove(owner, ItemKind.RESPONSE, response_id) is not None or job is not None
        # A job of another process is not in the store, and one that has just ended is still in the database.
        was_left = await self._jobs.forget(owner, response_id)
        if not (found or was_left):
            raise self._not_found()
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, request: web.Request) -> web.Response:
        """Serve POST /v1/responses/{response_id}/cancel; a response that has ended is returned as it is."""
        owner, response_id = _owner_and_id(request)
        job = self._jobs.find(owner, response_id)
        if job is not None:
            await self._jobs.cancel(job)
        else:
            await self._jobs.end_elsewhere(owner, response_id)
        item = await self._store.get(owner, ItemKind.RESPONSE, response_id)
        if item is None and job is not None:
            # It is too large to be stored.
            return _json(*self._jobs.shown(job))
        if item is None:
            left = await self._jobs.left(owner, response_id)
            if left is None:
                raise self._not_found()
            return _json(left.document, left.headers)
        if not item.background:
            raise bad_request(
                "only a response that was created with background can be cancelled",
                "response_id",
                "response_not_cancellable",
            )
        final = await self._jobs.final_state(owner, item)
        shown = final or LeftJob(document_of(item, "response"), item.headers)
        return _json(shown.document, shown.headers)

    async def input_items(self, request: web.Request) -> web.Response:
        """Serve GET /v1/responses/{response_id}/input_items: its whole input, with the earlier turns."""
        owner, response_id = _owner_and_id(request)
        found: Item | BackgroundJob | None = self._jobs.find(owner, response_id)
        if found is None or not found.inputs:
            found = await self._store.get(owner, ItemKind.RESPONSE, response_id) or found
        found = found or await self._jobs.running_elsewhere(owner, response_id)
        if found is None:
            raise self._not_found()
        return page_response(request.query, join_segments(found.inputs), response_id, input_item, order="desc")

    def _not_found(self) -> ApiError:
        return not_stored(self._store, "response", "response")

    async def follow(
        self, request: web.Request, job: BackgroundJob | str, starting_after: int = _BEGINNING
    ) -> web.StreamResponse:
        """Stream the events of a job, also of one that has ended; one by its id is answered as its request wants it."""
        if isinstance(job, str):
            context = request[CONTEXT]
            return await self._show(request, context.key_id, job, context.stream, starting_after)
        if job.answer.ended:
            item = await self._jobs.item(job)
            return await self._stream(request, _events_of(item, starting_after), lambda: item.headers)
        # The headers are of the moment at which they go out, which may be long after this.
        with self._jobs.reading(job):
            events = self._events_of_job(job, starting_after)
            return await self._stream(request, events, lambda: headers_of(job.answer))

    async def _events_elsewhere(
        self, owner: str, response_id: str, left: LeftJob, starting_after: int
    ) -> AsyncGenerator[bytes, None]:
        """Yield the events of a job that another process runs: its first at once, the others when it has ended."""
        running = await self._jobs.running_elsewhere(owner, response_id)
        if running is not None and running.opening and starting_after < 0:
            yield running.opening
            starting_after = 0
        item = await self._jobs.wait_elsewhere(owner, response_id, self._relay_limit_s)
        if item is None:
            ended_without = await self._jobs.left(owner, response_id) or left
            async for chunk in _events_in(ended_without.document, starting_after):
                yield chunk
            return
        async for chunk in _events_of(item, starting_after):
            yield chunk

    async def _events_of_job(self, job: BackgroundJob, starting_after: int) -> AsyncGenerator[bytes, None]:
        """Yield the events of a job as they come; where it does not stream, all of them at its end."""
        answer = job.answer
        head = None
        if starting_after < 0:
            # At once, so that a client that loses the connection can come back with the id.
            yield job.opening
            starting_after = 0
        if answer.order.task.stream:
            # A failure before the first byte has the events of a failed response, as one that is not streamed.
            with suppress(Exception):
                head = await answer.wait_head()
        if head is not None and is_readable_stream(head.content_type, head.content_encoding):
            changes = {"id": job.id, **job.changes}
            step = ReplayedStream(changes, starting_after=starting_after, is_open=True)
            try:
                async for chunk in answer.chunks():
                    if found := step.feed(chunk):
                        yield found
                yield step.rest()
            except Exception:
                last = await self._end_of_job(job, step.last + 1)
                if last is None:
                    raise
                yield last
            return
        item = await self._end_item(job)
        if item is not None:
            async for chunk in _events_of(item, starting_after):
                yield chunk

    async def _end_item(self, job: BackgroundJob) -> Item | None:
        """Return the item of a job that has ended; None where it was deleted."""
        await self._jobs.stored(job)
        item = await self._store.get(job.owner, ItemKind.RESPONSE, job.id)
        if item is None and job.error is not None and not job.is_stored:
            return await self._jobs.item(job)
        return item

    async def _end_of_job(self, job: BackgroundJob, number: int) -> bytes | None:
        """Return the end of the stream of a job that failed; None where its error is not known."""
        error = job.answer.error
        if error is None:
            # The job goes on: only this reader has failed.
            return None
        item = await self._end_item(job)
        if item is None:
            return None
        if isinstance(error, Undelivered) and error.is_told:
            # The provider's own error has ended the stream, and a client reads one end.
            return b""
        return end_event(document_of(item, "response"), number)

    async def _stream(
        self, request: web.Request, chunks: AsyncGenerator[bytes, None], headers: Callable[[], Mapping[str, str]]
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": EVENTS, **STREAM_HEADERS})
        relay = SseRelay(
            request,
            response,
            kind=TaskKind.RESPONSES,
            heartbeat_s=self._heartbeat_s,
            limit_s=self._relay_limit_s,
            on_bytes=lambda _count: None,
            on_head=lambda: response.headers.update(headers()),
        )
        try:
            await relay.run(chunks)
        except Exception as error:
            failure = map_error(error)
            if failure is None:
                raise
            if not relay.begun:
                raise failure from error
            request[CONTEXT].problem = failure.code or "broken off"
            await relay.break_off(failure)
        return response


def _owner_and_id(request: web.Request) -> tuple[str, str]:
    return request[CONTEXT].key_id, request.match_info["response_id"]


def _read_stream_query(query: Mapping[str, str]) -> tuple[bool, int]:
    """Return whether the client asks for events, and after which number."""
    word = query.get("stream", "false").strip().lower()
    if word not in {"true", "false"}:
        raise bad_request("stream must be true or false", "stream", "invalid_type")
    after = query.get("starting_after")
    if after is None:
        return word == "true", _BEGINNING
    if word != "true":
        raise bad_request("starting_after needs stream", "starting_after", "invalid_value")
    if not (after.isascii() and after.isdigit() and len(after) <= 18):  # noqa: PLR2004 - fits into 64 bits
        raise bad_request("starting_after must be the number of an event", "starting_after", "invalid_value")
    return True, int(after)


def _json(document: bytes, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=document, headers={**headers, "Content-Type": JSON})


async def _events_of(item: Item, starting_after: int) -> AsyncGenerator[bytes, None]:
    """Yield the events of a stored response: the provider's where it was streamed, else equivalent ones."""
    if item.stream:
        is_open = bool(item.opening)
        if is_open and starting_after < 0:
            yield item.opening
        step = ReplayedStream(item.changes, starting_after=starting_after, is_open=is_open)
        for block in item.blocks:
            for start in range(0, len(block), _PIECE_BYTES):
                # Other streams go on between the pieces.
                await asyncio.sleep(0)
                if found := step.feed(block[start : start + _PIECE_BYTES]):
                    yield found
        if found := step.rest():
            yield found
        return
    async for chunk in _events_in(document_of(item, "response"), starting_after):
        yield chunk


async def _events_in(document: bytes, starting_after: int) -> AsyncGenerator[bytes, None]:
    """Yield events that are equivalent to a response."""
    step = ReplayedStream({}, starting_after=starting_after)
    found = step.feed(to_events(document)) + step.rest()
    if not found and (object_or_none(document) or {}).get("status") in _FAILED:
        # The stream that was cut had more events than these: a client that comes back for the rest gets the end.
        found = end_event(document, starting_after + 1)
    yield found


def input_item(item: Any, response_id: str, place: int) -> dict[str, Any]:
    """Return an input item in OpenAI's form: with an id, and a message's text in parts."""
    if not isinstance(item, dict):
        return {"id": _item_id(response_id, place), "type": "unknown", "value": item}
    shown = dict(item)
    if "role" in item:
        shown.setdefault("type", "message")
        if isinstance(item.get("content"), str):
            part = _TEXT_PARTS.get(str(item["role"]), "input_text")
            shown["content"] = [{"type": part, "text": item["content"]}]
            if part == "output_text":
                shown["content"][0]["annotations"] = []
        shown.setdefault("status", "completed")
    if not isinstance(item.get("id"), str):
        shown["id"] = _item_id(response_id, place)
    return shown


def _item_id(response_id: str, place: int) -> str:
    return f"item_{response_id}_{place}"
