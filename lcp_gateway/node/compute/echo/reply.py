"""Decides what the echo says: a text, a JSON text or a tool call, and where it is cut off."""

from dataclasses import dataclass

import orjson

from lcp_gateway.node.compute.echo import tokens
from lcp_gateway.node.compute.echo.conversation import Conversation, read_conversation
from lcp_gateway.node.compute.echo.sample import sample
from lcp_gateway.node.tasks import Task

_MAX_EARLIER_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """What is said, token by token.

    With ``tool`` the tokens are the arguments of a call to it. ``cut`` is true when the limit on tokens was reached
    before the end.
    """

    tokens: tuple[str, ...]
    tool: str | None
    cut: bool

    @property
    def text(self) -> str:
        """The whole of it."""
        return "".join(self.tokens)


def compose(task: Task) -> Reply:
    """Say something in answer to a task: the same for the same request."""
    conversation = read_conversation(task)
    tool = conversation.tool
    text = _dump(sample(tool.parameters or {"type": "object"})) if tool else _say(conversation)
    parts = tokens.split(text)
    cut = task.max_tokens is not None and len(parts) > task.max_tokens
    return Reply(
        tuple(parts[: task.max_tokens] if cut else parts), tool.name if tool else None, cut
    )


def _say(conversation: Conversation) -> str:
    if conversation.json_schema is True:
        return _dump({"echo": conversation.user_text})
    if conversation.json_schema is not None:
        return _dump(sample(conversation.json_schema))
    if conversation.tool_output is not None:
        return f"This is the echo node. The tool answered: {conversation.tool_output}"
    seen = ""
    if conversation.images:
        noun = "image" if conversation.images == 1 else "images"
        seen = f" (and sent {conversation.images} {noun})"
    said = f"This is the echo node. You said{seen}: {conversation.user_text}"
    if not conversation.earlier:
        return said
    shown = " / ".join(conversation.earlier)
    if len(shown) > _MAX_EARLIER_CHARACTERS:
        shown = f"{shown[:_MAX_EARLIER_CHARACTERS]}…"
    return f"{said} (and before that: {shown})"


def _dump(value: object) -> str:
    return orjson.dumps(value).decode()
