"""Judges of results: whether the bytes of one are whole, as the table of endings names it."""

from collections.abc import Mapping
from types import MappingProxyType

from lcp_gateway.adapters.completeness import Form, Judgement, StreamJudge, judge_document
from lcp_gateway.adapters.sse import is_uncompressed
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.purchase.outcome import Judge, Received

_RECEIVED: Mapping[Judgement, Received] = MappingProxyType(
    {
        Judgement.WHOLE: Received.WHOLE,
        Judgement.ERROR: Received.ERROR,
        Judgement.EMPTY: Received.EMPTY,
        Judgement.WRONG_KIND: Received.EMPTY,
        Judgement.CUT: Received.PART,
    }
)
_FORMS: Mapping[TaskKind, Form] = MappingProxyType({kind: Form(kind.value) for kind in TaskKind})


class StreamResultJudge(StreamJudge):
    """Judges a streamed result. ``is_tidy`` says that its framing shows whether a part is missing."""

    __slots__ = ("_received", "is_tidy")

    def __init__(self, task: Task, content_encoding: str, *, wants_usage: bool = False) -> None:
        super().__init__(
            _FORMS[task.kind], request=task.body, content_encoding=content_encoding, wants_usage=wants_usage
        )
        self.is_tidy = True
        self._received: Received | None = None

    def received(self) -> Received:
        """Return the judgement, once the stream has ended."""
        if self._received is None:
            self._received = _RECEIVED[self.end(is_tidy=self.is_tidy)]
        return self._received


class WholeResultJudge:
    """Judges a result in one piece, which may be shown once it is known to be right."""

    __slots__ = ("_body", "_form", "_is_readable")

    free_bytes = 0
    is_complete = is_flooded = shows_error = False

    def __init__(self, task: Task, content_encoding: str) -> None:
        self._form = _FORMS[task.kind]
        self._is_readable = is_uncompressed(content_encoding)
        self._body = b""

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes, usually all of them."""
        self._body = self._body + chunk if self._body else chunk

    def feed_ordinary(self, chunk: bytes) -> bool:  # noqa: ARG002 - the whole result is judged, no part of it
        """Take nothing."""
        return False

    def received(self) -> Received:
        """Return the judgement. A compressed result is not unpacked: its hash has to do."""
        if not self._is_readable:
            return Received.WHOLE
        return _RECEIVED[judge_document(self._form, self._body)]


def judge_result(task: Task, content_type: str, content_encoding: str) -> Judge:  # noqa: ARG001 - the bytes themselves tell
    """Return a judge for the result of a task, streamed or not."""
    if task.stream:
        return StreamResultJudge(task, content_encoding)
    return WholeResultJudge(task, content_encoding)
