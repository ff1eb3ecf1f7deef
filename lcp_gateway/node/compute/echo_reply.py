"""The echo's reply to a request: a text, a JSON text or a tool call, as tokens.

A token here is a word with the white space before it, long words in pieces of sixteen characters.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson

from lcp_gateway.node.compute.json_sample import sample_json
from lcp_gateway.node.compute.tasks import Task
from lcp_gateway.node.lcp.messages import CHAT

# Possessive quantifiers keep this linear in the length of a run of white space.
_TOKEN = re.compile(r"\s*+\S{1,16}|\s++")


def split_tokens(text: str) -> list[str]:
    """Cut a text into its tokens; joined, they are the text."""
    return _TOKEN.findall(text)


async def paced(tokens: Sequence[str], tokens_per_second: float) -> AsyncIterator[str]:
    """Yield tokens at a pace, the first after one step; 0 means at once. Lateness is made up, not added up."""
    if tokens_per_second <= 0:
        for token in tokens:
            yield token
        return
    clock = asyncio.get_running_loop().time
    start = clock()
    for count, token in enumerate(tokens, 1):
        pause = start + count / tokens_per_second - clock()
        if pause > 0:
            await asyncio.sleep(pause)
        yield token


MAX_ECHO_CHARACTERS: Final = 65_536
"""How much of a message is repeated."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that may be called; ``parameters`` is its JSON Schema."""

    name: str
    parameters: Any


@dataclass(frozen=True, slots=True)
class Conversation:
    """The end of a conversation, the same for both kinds of task.

    ``earlier`` holds the user's texts of the answered turns before it. ``tool_output`` is set when the last message is
    a tool's, ``tool`` when one is to be called. ``json_schema`` is None for plain text, True for any JSON object.
    """

    user_text: str
    images: int
    tool_output: str | None
    tool: Tool | None
    json_schema: Any
    earlier: tuple[str, ...] = ()


def read_conversation(task: Task) -> Conversation:
    """Read a task's document. A part of an unexpected shape is skipped, never refused."""
    document = task.document
    chat = task.kind == CHAT
    items = document.get("messages" if chat else "input")
    if isinstance(items, str):
        items = [{"role": "user", "content": items}]
    messages = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
    user = next((item for item in reversed(messages) if item.get("role") == "user"), {})
    user_text, images = _read_content(user.get("content"))
    last = messages[-1] if messages else {}
    tool_output = None
    if last.get("role") == "tool" or str(last.get("type", "")).endswith("_output"):
        tool_output, _ = _read_content(last.get("content" if chat else "output"))
    return Conversation(
        user_text=user_text,
        images=images,
        tool_output=tool_output,
        tool=_choose_tool(document) if tool_output is None and last.get("role") == "user" else None,
        json_schema=_read_format(document, chat=chat),
        earlier=_earlier(messages, user),
    )


def _earlier(messages: list[dict[str, Any]], user: dict[str, Any]) -> tuple[str, ...]:
    """Return the user's texts before an answer of the assistant that is part of the request."""
    answers = [at for at, item in enumerate(messages) if item.get("role") == "assistant"]
    if not answers:
        # Messages that clients put before the first question, such as their environment, are no turn.
        return ()
    texts = (
        _read_content(item.get("content"))[0]
        for item in messages[: answers[-1]]
        if item.get("role") == "user" and item is not user
    )
    return tuple(filter(None, texts))


def _read_content(content: Any) -> tuple[str, int]:
    """Return the text of a message and its number of images."""
    if isinstance(content, str):
        return content[:MAX_ECHO_CHARACTERS], 0
    texts: list[str] = []
    images = 0
    for part in content if isinstance(content, list) else ():
        if not isinstance(part, dict):
            continue
        if isinstance(text := part.get("text"), str):
            texts.append(text)
        elif part.get("type") in {"image_url", "input_image"}:
            images += 1
    return " ".join(texts)[:MAX_ECHO_CHARACTERS], images


def _choose_tool(document: dict[str, Any]) -> Tool | None:
    choice = document.get("tool_choice")
    if choice == "none":
        return None
    listed = document.get("tools")
    tools = [tool for entry in (listed if isinstance(listed, list) else ()) if (tool := _read_tool(entry))]
    if isinstance(choice, dict):
        nested = choice.get("function")
        name = nested.get("name") if isinstance(nested, dict) else choice.get("name")
        tools = [tool for tool in tools if tool.name == name] or tools
    return tools[0] if tools else None


def _read_tool(entry: Any) -> Tool | None:
    """Read a function tool: chat nests it under ``function``, Responses does not."""
    if not isinstance(entry, dict) or entry.get("type") != "function":
        return None
    nested = entry.get("function")
    function = nested if isinstance(nested, dict) else entry
    name = function.get("name")
    return Tool(name, function.get("parameters") or {}) if isinstance(name, str) and name else None


def _read_format(document: dict[str, Any], *, chat: bool) -> Any:
    if chat:
        wanted = document.get("response_format")
    else:
        text = document.get("text")
        wanted = text.get("format") if isinstance(text, dict) else None
    if not isinstance(wanted, dict):
        return None
    if wanted.get("type") == "json_object":
        return True
    if wanted.get("type") != "json_schema":
        return None
    holder = wanted.get("json_schema") if chat else wanted
    schema = holder.get("schema") if isinstance(holder, dict) else None
    return schema if isinstance(schema, dict) else True


_MAX_EARLIER_CHARACTERS = 200


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply, token by token; with ``tool`` the tokens are the arguments of a call to it.

    ``cut`` is true when the limit on tokens was reached before the end.
    """

    tokens: tuple[str, ...]
    tool: str | None
    cut: bool

    @property
    def text(self) -> str:
        """The tokens, joined."""
        return "".join(self.tokens)


def compose(task: Task) -> Reply:
    """Compose the reply to a task: the same for the same request."""
    conversation = read_conversation(task)
    tool = conversation.tool
    text = _dump(sample_json(tool.parameters or {"type": "object"})) if tool else _text(conversation)
    parts = split_tokens(text)
    cut = task.max_tokens is not None and len(parts) > task.max_tokens
    return Reply(tuple(parts[: task.max_tokens] if cut else parts), tool.name if tool else None, cut)


def _text(conversation: Conversation) -> str:
    if conversation.json_schema is True:
        return _dump({"echo": conversation.user_text})
    if conversation.json_schema is not None:
        return _dump(sample_json(conversation.json_schema))
    if conversation.tool_output is not None:
        return f"This is the echo node. The tool answered: {conversation.tool_output}"
    seen = ""
    if conversation.images:
        noun = "image" if conversation.images == 1 else "images"
        seen = f" (and sent {conversation.images} {noun})"
    text = f"This is the echo node. You said{seen}: {conversation.user_text}"
    if not conversation.earlier:
        return text
    shown = " / ".join(conversation.earlier)
    if len(shown) > _MAX_EARLIER_CHARACTERS:
        shown = f"{shown[:_MAX_EARLIER_CHARACTERS]}…"
    return f"{text} (and before that: {shown})"


def _dump(value: object) -> str:
    return orjson.dumps(value).decode()
