"""Responses that are worked on in the background: what a client is shown of one while it runs, and when it came to nothing."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

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
_SHOWN = (
    *_ECHOED,
    "metadata",
    "parallel_tool_calls",
    "previous_response_id",
    "tool_choice",
    "tools",
)


class BackgroundRecord(Protocol):
    """A job that this process does not run; ``elsewhere`` says that another one does."""

    @property
    def model(self) -> str:
        """What was asked for."""
        ...

    @property
    def created_at(self) -> datetime:
        """When it was begun."""
        ...

    @property
    def elsewhere(self) -> bool:
        """Whether another process works on it."""
        ...

    @property
    def money(self) -> Mapping[str, object]:
        """What became of its purchase: ``payment``, and for what."""
        ...


class BackgroundRepository(Protocol):
    """Where running jobs are written down, so that a restart does not forget them."""

    async def record(
        self,
        job_id: str,
        *,
        key_id: str,
        model: str,
        at: datetime,
        repeat: RepeatIdentity | None = None,
    ) -> None:
        """Write a job down; durable when this returns.

        Raises:
            RequestRepeated: its request was bought before; nothing was written.
        """
        ...

    async def forget(self, job_id: str) -> None:
        """Forget one that has ended."""
        ...

    async def find(self, job_id: str, key_id: str) -> BackgroundRecord | None:
        """Give one of a credential."""
        ...


class ResponseStatus(enum.StrEnum):
    """Where it stands, in OpenAI's words."""

    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


FINAL_STATUSES = frozenset({"completed", "incomplete", "failed", "cancelled"})
"""The statuses of a response that will not change; the second is a provider's alone."""


def echoed_fields(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """Give what a response object repeats of its request; what was said is not among it, but for the instructions."""
    return {name: document[name] for name in _SHOWN if name in document}


@dataclass(slots=True, eq=False)
class BackgroundJob:
    """One that runs, or has run. ``request`` is what is shown of what was asked for (``shown_of``).

    ``inputs`` are the segments of all that leads to it; times are seconds since 1970. ``opening`` is the event that its stream
    begins with, ``attended`` says that somebody waits for its end, ``problem`` what became of an answer that came and could not be kept.
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
    problem: Exception | None = None

    @property
    def error(self) -> Exception | None:
        """What it came to instead of a result."""
        return self.problem or self.answer.error

    @property
    def status(self) -> ResponseStatus:
        """Where it stands."""
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
        """The members of its result for which the gateway answers."""
        return {
            "background": True,
            "previous_response_id": self.request.get("previous_response_id"),
        }

    def document(
        self,
        *,
        error: Mapping[str, object] | None = None,
        money: Mapping[str, object] | None = None,
    ) -> bytes:
        """Give the response object that says so. ``error`` has ``code`` and ``message``; ``money`` goes out as ``lcp``."""
        try:
            return self._document(self.request, error, money)
        except RecursionError:
            # What was asked for is nested deeper than can be written, so it is left out.
            return self._document({}, error, money)

    def let_go(self) -> None:
        """Let go of what is not needed after its end: repeats of its request may find it for a day."""
        self.inputs = ()
        self.opening = b""
        self.request = {"previous_response_id": self.request.get("previous_response_id")}

    def _document(
        self,
        request: Mapping[str, Any],
        error: Mapping[str, object] | None,
        money: Mapping[str, object] | None,
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
    """Give the response object of a job without a result; what was asked for stands in it as OpenAI has it."""
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
