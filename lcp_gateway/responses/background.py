"""Background jobs: the response object of one that runs, or that ended without a result."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple, Protocol

from lcp_gateway.adapters.json_bytes import dump_json
from lcp_gateway.purchase.journal import RepeatIdentity
from lcp_gateway.purchase.result_buffer import ResultBuffer
from lcp_gateway.purchase.states import State

_ECHOED = (
    "instructions",
    "max_output_tokens",
    "max_tool_calls",
    "reasoning",
    "safety_identifier",
    "service_tier",
    "temperature",
    "text",
    "top_logprobs",
    "top_p",
    "truncation",
    "user",
)
_SHOWN = (*_ECHOED, "metadata", "parallel_tool_calls", "previous_response_id", "tool_choice", "tools")


@dataclass(frozen=True, slots=True)
class BackgroundRecord:
    """A job that this process does not run: another one does (``elsewhere``), or it was lost in a restart.

    ``money`` are the facts of its newest purchase: ``payment``, which is a value of ``Verdict``, and the price and the charge
    where there is one.
    """

    id: str
    model: str
    created_at: datetime
    elsewhere: bool
    money: Mapping[str, object]


class BackgroundRepository(Protocol):
    """Where running jobs are recorded, so that they survive a restart."""

    async def record(
        self, job_id: str, *, key_id: str, model: str, at: datetime, repeat: RepeatIdentity | None = None
    ) -> None:
        """Record a job; durable when this returns.

        Raises:
            RequestRepeated: its request was bought before; nothing was recorded.
        """
        ...

    async def forget(self, job_id: str) -> None:
        """Delete the record of a job that has ended."""
        ...

    async def find(self, job_id: str, key_id: str) -> BackgroundRecord | None:
        """Return the record of a credential's job."""
        ...


class LeftJob(NamedTuple):
    """The response object and headers of a job that this process does not run; ``runs``: another one does."""

    document: bytes
    headers: Mapping[str, str]
    runs: bool = False


class ResponseStatus(enum.StrEnum):
    """The status of a response, in OpenAI's words."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATUSES = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The statuses that do not change any more; ``incomplete`` is a provider's only."""


def echoed_fields(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the members of a request that its response object repeats: of the conversation the instructions only."""
    return {name: document[name] for name in _SHOWN if name in document}


@dataclass(slots=True, eq=False)
class BackgroundJob:
    """A job that runs, or has run. ``request`` are the request's ``echoed_fields``.

    ``inputs`` are the segments of the conversation before it; times are seconds since 1970. ``opening`` is the event that
    its stream begins with, ``attended`` says that a task waits for its end, ``is_stored`` that its end is where all processes
    find it, ``problem`` is the error of an answer that came and could not be stored.
    """

    id: str
    owner: str
    created_at: int
    model: str
    answer: ResultBuffer
    request: Mapping[str, Any] = field(repr=False)
    inputs: tuple[bytes, ...] = field(default=(), repr=False)
    opening: bytes = field(default=b"", repr=False)
    cancelled: bool = False
    attended: bool = False
    is_stored: bool = False
    problem: Exception | None = None

    @property
    def error(self) -> Exception | None:
        """The error in place of a result."""
        return self.problem or self.answer.error

    @property
    def status(self) -> ResponseStatus:
        """The status now."""
        answer = self.answer
        if answer.ended:
            if self.error is None:
                return ResponseStatus.COMPLETED
            return ResponseStatus.CANCELLED if self.cancelled else ResponseStatus.FAILED
        if answer.purchase is None or answer.purchase.state is State.QUOTED:
            return ResponseStatus.QUEUED
        return ResponseStatus.IN_PROGRESS

    @property
    def changes(self) -> Mapping[str, object]:
        """The members of its result that the gateway sets."""
        return {"background": True, "previous_response_id": self.request.get("previous_response_id")}

    def document(
        self, *, error: Mapping[str, object] | None = None, money: Mapping[str, object] | None = None
    ) -> bytes:
        """Return the response object. ``error`` has ``code`` and ``message``; ``money`` is shown as ``lcp``."""
        try:
            return self._document(self.request, error, money)
        except ValueError:
            # The request is nested too deeply to be written, so it is left out.
            return self._document({}, error, money)

    def release(self) -> None:
        """Drop the data that an ended job does not need: it is kept for a day for repeats of its request."""
        self.inputs = ()
        self.opening = b""
        self.request = {"previous_response_id": self.request.get("previous_response_id")}

    def _document(
        self, request: Mapping[str, Any], error: Mapping[str, object] | None, money: Mapping[str, object] | None
    ) -> bytes:
        return dump_json(
            response_object(
                self.id,
                created_at=self.created_at,
                model=self.model,
                status=self.status,
                request=request,
                error=error,
                money=money,
            )
        )


def response_object(
    response_id: str,
    *,
    created_at: int,
    model: str,
    status: ResponseStatus,
    request: Mapping[str, Any],
    error: Mapping[str, object] | None = None,
    money: Mapping[str, object] | None = None,
) -> dict[str, object]:
    """Return the response object of a job without a result, with the echoed fields as OpenAI has them."""
    shown: dict[str, object] = {
        "id": response_id,
        "object": "response",
        "created_at": created_at,
        "status": status.value,
        "background": True,
        "error": dict(error) if error is not None else None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "previous_response_id": request.get("previous_response_id"),
        "parallel_tool_calls": request.get("parallel_tool_calls", True),
        "tool_choice": request.get("tool_choice", "auto"),
        "tools": request.get("tools") or [],
        "metadata": request.get("metadata") or {},
        "store": True,
        "usage": None,
    }
    shown |= {name: request[name] for name in _ECHOED if name in request}
    shown.setdefault("instructions", None)
    if money is not None:
        shown["lcp"] = dict(money)
    return shown
