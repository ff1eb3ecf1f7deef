"""A task: what the client wants computed, as the bytes it sent."""

import enum
from dataclasses import dataclass, field


class TaskKind(enum.StrEnum):
    """The kinds of task. Protocol version 2 knows the first two, and their value is the name that a terms hash covers."""

    CHAT_COMPLETIONS = "openai.chat_completions.v1"
    RESPONSES = "openai.responses.v1"
    COMPLETIONS = "openai.completions.v1"
    EMBEDDINGS = "openai.embeddings.v1"


@dataclass(frozen=True, slots=True)
class Task:
    """One computation to buy.

    ``body`` is the request exactly as the client sent it: no part of the gateway re-serialises it.
    """

    kind: TaskKind
    model: str
    body: bytes = field(repr=False)
    stream: bool
