"""GET, DELETE and cancel of /v1/responses/{id}: what was stored, and what is worked on in the background."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import suppress

from aiohttp import web

from lcp_gateway.adapters.json_bytes import object_or_none
from lcp_gateway.http.context import CONTEXT
from lcp_gateway.http.error_mapping import map_error
from lcp_gateway.http.errors import ApiError, bad_request
from lcp_gateway.http.fields import json_response
from lcp_gateway.http.openai.background import BackgroundResponses, ended, headers_of
from lcp_gateway.http.openai.history import input_item, not_stored, page_response, unreadable
from lcp_gateway.http.openai.response import EVENTS, JSON, STREAM_HEADERS
from lcp_gateway.http.openai.sse_relay import SseRelay
from lcp_gateway.purchase.errors import Undelivered
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.responses.background import BackgroundJob, ResponseStatus
from lcp_gateway.responses.history import join_segments
from lcp_gateway.responses.items import Item, ItemKind
from lcp_gateway.responses.replay import EventRewriter, end_event, is_readable, to_events
from lcp_gateway.responses.store import ResponseStore

# A stored stream is handed on in pieces of this size, so that a long one keeps nobody else waiting.
_PIECE_BYTES = 65_536
_FAILED = (ResponseStatus.FAILED, ResponseStatus.CANCELLED)
_NOTHING = -1
"""What a replay from the beginning starts after."""


class ResponseRoutes:
    """Serves what clients come back for. Nobody learns whether an id exists that is another credential's."""

    def __init__(
        self,
        store: ResponseStore[Item],
        jobs: BackgroundResponses,
        *,
        heartbeat_s: float,
        relay_limit_s: float,
    ) -> None:
        self._store = store
        self._jobs = jobs
        self._heartbeat_s = heartbeat_s
        self._relay_limit_s = relay_limit_s

    async def get(self, request: web.Request) -> web.StreamResponse:
        """Serve GET /v1/responses/{response_id}, also with ``stream`` and ``starting_after``."""
        stream, starting_after = _asked(request.query)
        owner, response_id = _whose(request)
        job = self._jobs.find(owner, response_id)
        if job is not None:
            if stream:
                return await self.follow(request, job, starting_after)
            return _json(*self._jobs.shown(job))
        item = self._store.get(owner, ItemKind.RESPONSE, response_id)
        left = None if item is None else await self._jobs.learnt(owner, item)
        if item is not None and left is None:
            if stream:
                events = _events_of(item, starting_after)
                return await self._stream(request, events, lambda: item.headers)
            return _json(_document(item), item.headers)
        left = left or await self._jobs.left(owner, response_id)
        if left is None:
            raise self._not_found()
        if stream:
            events = _events_in(left[0], starting_after)
            return await self._stream(request, events, lambda: left[1])
        return _json(*left)

    async def delete(self, request: web.Request) -> web.Response:
        """Serve DELETE /v1/responses/{response_id}; a job that runs is cancelled first."""
        owner, response_id = _whose(request)
        job = self._jobs.find(owner, response_id)
        if job is not None:
            await self._jobs.cancel(job)
        found = (
            self._store.remove(owner, ItemKind.RESPONSE, response_id) is not None or job is not None
        )
        # A job that was left behind is nothing that a store holds, and one that has just ended is still written down.
        was_left = await self._jobs.forget(owner, response_id)
        if not (found or was_left):
            raise self._not_found()
        return json_response({"id": response_id, "object": "response", "deleted": True})

    async def cancel(self, request: web.Request) -> web.Response:
        """Serve POST /v1/responses/{response_id}/cancel; of one that has ended it gives what it came to."""
        owner, response_id = _whose(request)
        job = self._jobs.find(owner, response_id)
        if job is not None:
            await self._jobs.cancel(job)
        item = self._store.get(owner, ItemKind.RESPONSE, response_id)
        if item is None and job is not None:
            # It is larger than what can be stored.
            return _json(*self._jobs.shown(job))
        if item is None:
            left = await self._jobs.left(owner, response_id)
            if left is None:
                raise self._not_found()
            return _json(*left)
        if not item.background:
            raise bad_request(
                "only a response that was created with background can be cancelled",
                "response_id",
                "response_not_cancellable",
            )
        learnt = await self._jobs.learnt(owner, item)
        return _json(*(learnt or (_document(item), item.headers)))

    async def input_items(self, request: web.Request) -> web.Response:
        """Serve GET /v1/responses/{response_id}/input_items: all that led to it, the earlier turns too."""
        owner, response_id = _whose(request)
        found = self._store.get(owner, ItemKind.RESPONSE, response_id) or self._jobs.find(
            owner, response_id
        )
        if found is None:
            raise self._not_found()
        return page_response(
            request.query, join_segments(found.inputs), response_id, input_item, order="desc"
        )

    def _not_found(self) -> ApiError:
        return not_stored(self._store, "response", "response")

    async def follow(
        self, request: web.Request, job: BackgroundJob, starting_after: int = _NOTHING
    ) -> web.StreamResponse:
        """Give the events of a job, also of one that has ended."""
        if job.answer.ended:
            item = self._jobs.item(job)
            return await self._stream(
                request, _events_of(item, starting_after), lambda: item.headers
            )
        # The headers say what is known when they go out, which may be long after this.
        with self._jobs.reading(job):
            events = self._events_of_job(job, starting_after)
            return await self._stream(request, events, lambda: headers_of(job.answer))

    async def _events_of_job(
        self, job: BackgroundJob, starting_after: int
    ) -> AsyncGenerator[bytes, None]:
        """Give the events of a job as they come; where it does not stream, all of them at its end."""
        answer = job.answer
        head = None
        if starting_after < 0:
            # At once, so that whoever loses the connection meanwhile knows what to come back for.
            yield job.opening
            starting_after = 0
        if answer.order.task.stream:
            # What failed before its first byte has the events of a failed response, as one that is not streamed has.
            with suppress(Exception):
                head = await answer.wait_head()
        if head is not None and is_readable(head.content_type, head.content_encoding):
            changes = {"id": job.id, **job.changes}
            step = EventRewriter(changes, starting_after=starting_after, is_open=True)
            try:
                async for chunk in answer.chunks():
                    if found := step.feed(chunk):
                        yield found
                yield step.rest()
            except Exception:
                last = self._end_of_job(job, step.last + 1)
                if last is None:
                    raise
                yield last
            return
        await ended(answer)
        item = self._store.get(job.owner, ItemKind.RESPONSE, job.id)
        if item is not None:
            async for chunk in _events_of(item, starting_after):
                yield chunk

    def _end_of_job(self, job: BackgroundJob, number: int) -> bytes | None:
        """Return what ends the stream of a job that came to an error; None where nothing is known of it."""
        error = job.answer.error
        item = self._store.get(job.owner, ItemKind.RESPONSE, job.id)
        if error is None or item is None:
            return None
        if isinstance(error, Undelivered) and error.is_told:
            # The provider's own error has ended the stream, and a client reads one end.
            return b""
        return end_event(_document(item), number)

    async def _stream(
        self,
        request: web.Request,
        chunks: AsyncGenerator[bytes, None],
        headers: Callable[[], Mapping[str, str]],
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


def _whose(request: web.Request) -> tuple[str, str]:
    return request[CONTEXT].key_id, request.match_info["response_id"]


def _asked(query: Mapping[str, str]) -> tuple[bool, int]:
    """Read whether events are asked for, and after which."""
    word = query.get("stream", "false").strip().lower()
    if word not in {"true", "false"}:
        raise bad_request("stream must be true or false", "stream", "invalid_type")
    after = query.get("starting_after")
    if after is None:
        return word == "true", _NOTHING
    if word != "true":
        raise bad_request("starting_after needs stream", "starting_after", "invalid_value")
    if not (after.isascii() and after.isdigit() and len(after) <= 18):  # noqa: PLR2004 - fits into 64 bits
        raise bad_request(
            "starting_after must be the number of an event", "starting_after", "invalid_value"
        )
    return True, int(after)


def _document(item: Item) -> bytes:
    try:
        return item.document()
    except ValueError:
        raise unreadable("response") from None


def _json(document: bytes, headers: Mapping[str, str]) -> web.Response:
    return web.Response(body=document, headers={**headers, "Content-Type": JSON})


async def _events_of(item: Item, starting_after: int) -> AsyncGenerator[bytes, None]:
    """Give the events of a stored response: its own where it was streamed, else those that it amounts to."""
    if item.stream:
        is_open = bool(item.opening)
        if is_open and starting_after < 0:
            yield item.opening
        step = EventRewriter(item.changes, starting_after=starting_after, is_open=is_open)
        for block in item.blocks:
            for start in range(0, len(block), _PIECE_BYTES):
                # Other streams go on between the pieces.
                await asyncio.sleep(0)
                if found := step.feed(block[start : start + _PIECE_BYTES]):
                    yield found
        if found := step.rest():
            yield found
        return
    async for chunk in _events_in(_document(item), starting_after):
        yield chunk


async def _events_in(document: bytes, starting_after: int) -> AsyncGenerator[bytes, None]:
    """Give the events that a response amounts to."""
    step = EventRewriter({}, starting_after=starting_after)
    found = step.feed(to_events(document)) + step.rest()
    if not found and (object_or_none(document) or {}).get("status") in _FAILED:
        # It was cut in a stream with more events than it amounts to: whoever comes back for the rest is to hear the end.
        found = end_event(document, starting_after + 1)
    yield found
