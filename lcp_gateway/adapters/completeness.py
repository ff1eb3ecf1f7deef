"""Whether a result is whole: judged from its bytes alone, streamed or not, without changing them.

A whole answer is whole however its connection ends. An error is an error whatever HTTP status, hash or end mark came with
it. A compressed result cannot be read, and is left to its hash and its framing.
"""

import enum
from collections.abc import Mapping
from typing import Any, Final

from lcp_gateway.adapters.json_bytes import object_or_none, parse_json
from lcp_gateway.adapters.sse import MAX_EVENT_BYTES, Event, EventReader, is_uncompressed, read_fields


class Form(enum.StrEnum):
    """The form of a result. The values are those of the kinds of task."""

    CHAT = "openai.chat_completions.v1"
    RESPONSES = "openai.responses.v1"
    COMPLETIONS = "openai.completions.v1"
    EMBEDDINGS = "openai.embeddings.v1"


class Judgement(enum.StrEnum):
    """The verdict on a result."""

    WHOLE = "whole"
    ERROR = "error"
    """An error in place of a result, or in the middle of one."""
    EMPTY = "empty"
    """No bytes, white space, or a result without content."""
    WRONG_KIND = "wrong_kind"
    """Another kind of document than was asked for, such as an HTML page."""
    CUT = "cut"
    """The beginning of a result."""


MAX_AFTER_END_BYTES = 256 * 1024
"""The bytes after the end mark that a stream may have before it is given up."""

_DONE = b"[DONE]"
_COMPLETE = frozenset({"response.completed", "response.incomplete"})
# A failed response is not a result; nor is one that its provider cancelled without being asked.
_FAILED = frozenset({"response.failed", "response.cancelled", "error"})
_FAILED_STATUSES = frozenset({"failed", "cancelled"})
_UNFINISHED_STATUSES = frozenset({"queued", "in_progress"})
_ERROR = "error"
# Python 3.11 takes ten times as long to find the member of an enumeration as a name.
_COMPLETIONS: Final = Form.COMPLETIONS
_RESPONSES: Final = Form.RESPONSES
_EMBEDDINGS: Final = Form.EMBEDDINGS
_WHOLE: Final = Judgement.WHOLE

# The bytes of an event that ends a stream, or is an error, hold one of these. No other event has to be parsed.
_ERROR_MARK = b"error"
_RESPONSES_MARKS = (b"complete", b"fail", b"cancel")
_FINISH = b'"finish_reason"'
_UNFINISHED = (_FINISH + b":null", _FINISH + b": null")
_USAGE = b'"usage"'
_TOKENS = b'_tokens"'
_EVENT_ENDS = (b"\n\n", b"\r\n\r\n", b"\r\r")
_SPACE = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_DOCUMENT_STARTS = (b"{", b"[", b"<")
# The list in a whole result, by its form.
_LISTS = {Form.CHAT: "choices", Form.COMPLETIONS: "choices", Form.RESPONSES: "output", Form.EMBEDDINGS: "data"}
# A larger document is not parsed: that would block the event loop, and no error is that long.
_MAX_PARSED_BYTES = 1024 * 1024


def judge_document(form: Form, body: bytes) -> Judgement:
    """Judge a result that is one document."""
    text = body.removeprefix(_BOM).strip(_SPACE)
    if not text:
        return Judgement.EMPTY
    if len(text) > _MAX_PARSED_BYTES:
        return _judge_long(form, text)
    try:
        document = parse_json(text)
    except ValueError:
        return Judgement.CUT if text.startswith((b"{", b"[")) else Judgement.WRONG_KIND
    if not isinstance(document, dict):
        return Judgement.WRONG_KIND
    if _holds_error(document):
        return Judgement.ERROR
    if form is _RESPONSES:
        return _judge_response(document)
    return _judge_list(form, document.get(_LISTS[form]))


class StreamJudge:
    """Judges a stream chunk by chunk.

    ``free_bytes`` is how many of its bytes may be sent to a client now. A client that sees the end mark takes the result
    for complete, so the end mark and all that follows it wait until the result is verified; so does the beginning of an
    unfinished event. ``is_complete`` says that the stream is over, by an end mark or an error; ``shows_error`` that the
    provider's own error is among the free bytes.
    """

    __slots__ = (
        "_after_end_bytes",
        "_document",
        "_ended",
        "_failed",
        "_finished",
        "_form",
        "_has_choices",
        "_has_content",
        "_has_data",
        "_has_junk",
        "_is_events",
        "_is_quiet",
        "_marks",
        "_readable",
        "_reader",
        "_request",
        "_usage_event",
        "_wants_usage",
        "free_bytes",
        "is_complete",
        "shows_error",
    )

    def __init__(
        self, form: Form, *, request: bytes = b"", content_encoding: str = "", wants_usage: bool = False
    ) -> None:
        """``request`` is the body of the request, which determines the number of choices."""
        self._form = form
        self._request = request
        self._readable = is_uncompressed(content_encoding)
        self._wants_usage = wants_usage
        self._has_choices = form is not Form.RESPONSES
        # In addition to the two of every form.
        self._marks = () if self._has_choices else _RESPONSES_MARKS
        if wants_usage:
            self._marks = (*self._marks, _TOKENS)
        self._reader = EventReader()
        self._document = bytearray()
        self._is_events: bool | None = None
        self._is_quiet = False
        self._has_content = False
        self._has_data = False
        self._has_junk = False
        self._finished: set[int] = set()
        self._ended = False
        self._failed = False
        self._after_end_bytes = 0
        self._usage_event: Event | None = None
        self.free_bytes = 0
        self.is_complete = False
        self.shows_error = False

    @property
    def is_flooded(self) -> bool:
        """Whether more than ``MAX_AFTER_END_BYTES`` came after the end."""
        return self._after_end_bytes > MAX_AFTER_END_BYTES

    def feed_ordinary(self, chunk: bytes) -> bool:
        """Read whole events of which none ends or fails anything, nearly every chunk; else read nothing and return False."""
        if not self._is_quiet or not chunk.endswith(_EVENT_ENDS) or _DONE in chunk or _ERROR_MARK in chunk:
            return False
        for mark in self._marks:
            if mark in chunk:
                return False
        if self._has_choices and _finishes(chunk):
            return False
        self.free_bytes += len(chunk)
        return True

    def feed(self, chunk: bytes) -> None:
        """Read the next bytes."""
        if self.feed_ordinary(chunk):
            return
        if not self._readable:
            self.free_bytes += len(chunk)
        elif self.is_complete:
            self._after_end_bytes += len(chunk)
        elif self._is_events:
            self._read(chunk)
        else:
            self._begin(chunk)

    def end(self, *, is_tidy: bool = True) -> Judgement:
        """Judge the ended stream. ``is_tidy`` says that by its framing nothing is missing."""
        if not self._readable:
            return Judgement.WHOLE
        if self._is_events is None:
            return Judgement.EMPTY
        if not self._is_events:
            if self.free_bytes:
                # Too long to be buffered, so it was sent without being judged.
                return Judgement.WRONG_KIND
            return judge_document(self._form, bytes(self._document))
        if not self.is_complete:
            self._look_at_rest()
        if self._failed:
            return Judgement.ERROR
        if self._reader.had_overlong:
            # Its content is unknown, and it was sent to the client.
            return Judgement.CUT
        all_finished = bool(self._finished) and len(self._finished) >= _choices_asked(self._request)
        if self._ended or (is_tidy and all_finished):
            return Judgement.WHOLE if self._has_content else Judgement.EMPTY
        if self._has_content:
            return Judgement.CUT
        return Judgement.WRONG_KIND if self._has_data or self._has_junk else Judgement.EMPTY

    @property
    def usage_data(self) -> bytes:
        """The data of the last event with the usage; empty without one."""
        return bytes(self._document) if self._usage_event is None else self._usage_event.data

    def _begin(self, chunk: bytes) -> None:
        """Decide from the first bytes whether these are events, or a document in place of them."""
        self._document += chunk
        if self._is_events is None:
            text = self._document.removeprefix(_BOM).lstrip(_SPACE)
            if not text or _BOM.startswith(self._document):
                return
            self._is_events = not text.startswith(_DOCUMENT_STARTS)
            if self._is_events:
                first = bytes(self._document)
                self._document.clear()
                self._read(first)
                return
        if self.free_bytes or len(self._document) > MAX_EVENT_BYTES:
            self.free_bytes += len(self._document)
            self._document.clear()

    def _read(self, chunk: bytes) -> None:
        for event in self._reader.feed(chunk):
            raw = event.raw
            if self.is_complete:
                self._after_end_bytes += len(raw)
                continue
            if not self._has_content or self._may_end(raw) or (self._wants_usage and _TOKENS in raw):
                self._look(event)
                if not self._may_show():
                    continue
            self.free_bytes += len(raw)
        self._is_quiet = self._has_content and not self.is_complete and not self._reader.holds

    def _may_show(self) -> bool:
        """Return whether the last event may be sent at once, which all but the end mark may."""
        return not self.is_complete or self.shows_error

    def _look(self, event: Event) -> None:
        raw = event.raw
        if not event.has_data:
            self._has_junk |= not (event.is_whole and _is_silent(raw))
            return
        if event.data.strip().startswith(_DONE):
            # Every client stops here, even one that waits for the end of a response.
            self.is_complete = True
            self._ended = self._form is not Form.RESPONSES
            return
        self._has_data = True
        if self._wants_usage and _TOKENS in raw and _USAGE in raw:
            self._usage_event = event
            if self._has_content and not self._may_end(raw):
                return
        value = object_or_none(event.data) or {}
        if self._form is _RESPONSES:
            self._look_at_response(event.name, value)
        else:
            self._look_at_chunk(event.name, value)

    def _may_end(self, raw: bytes) -> bool:
        return (
            _DONE in raw
            or _ERROR_MARK in raw
            or (_finishes(raw) if self._has_choices else any(mark in raw for mark in _RESPONSES_MARKS))
        )

    def _look_at_chunk(self, name: str, chunk: Mapping[str, Any]) -> None:
        if name == _ERROR or _holds_error(chunk):
            self._fail()
            return
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return
        if not self._has_content:
            self._has_content = _has_choice(self._form, choices)
        for position, choice in enumerate(choices):
            if _choice_failed(choice):
                self._fail()
            elif isinstance(choice, dict) and choice.get("finish_reason") is not None:
                index = choice.get("index")
                self._finished.add(index if isinstance(index, int) else position)

    def _look_at_response(self, name: str, value: Mapping[str, Any]) -> None:
        kind = value.get("type")
        kinds = {name, kind if isinstance(kind, str) else ""}
        response = value.get("response")
        self._has_content |= any(each.startswith("response.") for each in kinds)
        if kinds & _COMPLETE:
            self._ended = self.is_complete = True
            # A failed response must not count as completed because of its event's name.
            self._failed = isinstance(response, dict) and _response_failed(response)
        elif kinds & _FAILED or value.get("error"):
            self._fail()

    def _look_at_rest(self) -> None:
        """Read a last line without an end: by the specification not an event, but an end mark cannot be one that was cut."""
        for rest in self._reader.rest():
            self._has_junk |= not _is_silent(rest.raw)
            data = read_fields(rest.raw).data
            if self._form is not Form.RESPONSES and data is not None and data.strip() == _DONE:
                self._ended = True

    def _fail(self) -> None:
        self._failed = self.is_complete = self.shows_error = True


def _judge_long(form: Form, text: bytes) -> Judgement:
    if not text.startswith(b"{"):
        return Judgement.WRONG_KIND
    if not text.endswith(b"}"):
        return Judgement.CUT
    return Judgement.WHOLE if b'"%b"' % _LISTS[form].encode() in text else Judgement.WRONG_KIND


def _judge_list(form: Form, found: object) -> Judgement:
    if not isinstance(found, list):
        return Judgement.WRONG_KIND
    if not found:
        return Judgement.EMPTY
    if form is _EMBEDDINGS:
        return Judgement.WHOLE
    if any(map(_choice_failed, found)):
        return Judgement.ERROR
    return _WHOLE if _has_choice(form, found) else Judgement.WRONG_KIND


def _judge_response(document: Mapping[str, Any]) -> Judgement:
    status, output = document.get("status"), document.get("output")
    if _response_failed(document):
        return Judgement.ERROR
    if isinstance(output, list):
        # Some servers do not set the status at the end.
        return Judgement.WHOLE if output or status not in _UNFINISHED_STATUSES else Judgement.CUT
    return Judgement.EMPTY if document.get("object") == "response" else Judgement.WRONG_KIND


def _response_failed(response: Mapping[str, Any]) -> bool:
    return bool(response.get("error")) or response.get("status") in _FAILED_STATUSES


def _holds_error(document: Mapping[str, Any]) -> bool:
    return bool(document.get("error")) or _ERROR in (document.get("object"), document.get("type"))


def _choice_failed(choice: object) -> bool:
    return isinstance(choice, dict) and (choice.get("finish_reason") == _ERROR or bool(choice.get("error")))


def _has_choice(form: Form, choices: list[Any]) -> bool:
    """Return whether some choice is an answer, also an empty one; some servers only report that they filtered it."""
    if form is _COMPLETIONS:
        wanted: tuple[str, ...] = ("text", "message", "finish_reason")
    else:
        wanted = ("message", "delta", "finish_reason")
    # Without generators, since it runs for every result.
    for choice in choices:
        if isinstance(choice, dict):
            for name in wanted:
                if choice.get(name) is not None:
                    return True
    return False


def _finishes(raw: bytes) -> bool:
    """Return whether some choice in one event or several may be finished."""
    marks = raw.count(_FINISH)
    return marks > 0 and marks != sum(map(raw.count, _UNFINISHED))


def _is_silent(raw: bytes) -> bool:
    """Return whether there are only comments and empty lines."""
    return all(not line or line.startswith(b":") for line in raw.splitlines())


def _choices_asked(request: bytes) -> int:
    """Return how many choices a request asks for, one by default."""
    asked = object_or_none(request) or {}
    prompts = asked.get("prompt")
    several = 1
    if isinstance(prompts, list) and prompts and isinstance(prompts[0], str | list):
        several = len(prompts)
    n = asked.get("n")
    each = n if isinstance(n, int) and not isinstance(n, bool) else 1
    return max(each, 1) * several
