"""A task: what the client wants computed, as the bytes it sent."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

OUTPUT_LIMITS = ("max_completion_tokens", "max_tokens", "max_output_tokens")
"""The fields of requests that limit the output."""


class TaskKind(enum.StrEnum):
    """The kinds of task. Protocol version 2 knows the first two, and their value is the name that a terms hash covers."""

    CHAT_COMPLETIONS = "openai.chat_completions.v1"
    RESPONSES = "openai.responses.v1"
    COMPLETIONS = "openai.completions.v1"
    EMBEDDINGS = "openai.embeddings.v1"


SUBJECTS: Mapping[TaskKind, str] = MappingProxyType(
    {
        TaskKind.CHAT_COMPLETIONS: "messages",
        TaskKind.RESPONSES: "input",
        TaskKind.COMPLETIONS: "prompt",
        TaskKind.EMBEDDINGS: "input",
    }
)
"""The field of each kind that holds what is asked."""


@dataclass(frozen=True, slots=True)
class Task:
    """One computation to buy.

    ``body`` is the request exactly as the client sent it: no part of the gateway re-serialises it. ``output_tokens`` is
    the limit that it sets to its output, 0 where it sets none.
    """

    kind: TaskKind
    model: str
    body: bytes = field(repr=False)
    stream: bool
    output_tokens: int = 0


def output_limit(document: Mapping[str, Any]) -> int:
    """Return the most tokens of output that a request's body allows, 0 where it sets no usable limit."""
    for name in OUTPUT_LIMITS:
        limit = document.get(name)
        if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0:
            return limit
    return 0
