"""POST /v1/completions for a model that only has chat: the request converted to chat, and the answer back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lcp_gateway.adapters.json_bytes import dump_json, member_value, object_or_none, rewrite_object
from lcp_gateway.adapters.sse import Event, StreamRewriter

_OBJECT = "text_completion"
_MAX_LOGPROBS = 20
_MAX_EVENT_BYTES = 4 * 1024 * 1024
_MAX_CHOICES = 1024
# Chat's finish reasons for a tool call, which completions do not have.
_TOOL_STOPS = ("tool_calls", "function_call")


class NotAdaptable(ValueError):
    """A request that has no equivalent in chat. The message is fit for the client."""

    def __init__(self, message: str, param: str, code: str = "unsupported_value") -> None:
        """``param`` names the field; ``code`` is OpenAI's: unsupported_value or unsupported_parameter."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code


@dataclass(frozen=True, slots=True)
class CompletionPlan:
    """The data for converting the answer: the text to echo (often none), and whether log probabilities were requested."""

    echo: str = field(default="", repr=False)
    logprobs: bool = False
    stream: bool = False


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The request in chat's form, and the plan for its answer."""

    body: bytes = field(repr=False)
    plan: CompletionPlan


def to_chat(body: bytes, model: str | None = None) -> ChatRequest:
    """Convert a request for a completion to chat; every field with the same meaning there keeps its bytes.

    ``model`` replaces the body's own; None keeps that.

    Raises:
        NotAdaptable: chat has no equivalent.
        ValueError: the body is not a JSON object.
    """
    asked = object_or_none(body)
    if asked is None:
        raise ValueError("not a JSON object")
    prompt = _prompt(asked)
    echo = _echo(asked)
    logprobs = _logprobs(asked)
    _check_rest(asked)
    if echo and logprobs is not None:
        raise NotAdaptable(
            "this model is reached through chat, which gives no log probabilities of the prompt: "
            "leave out logprobs or echo",
            "logprobs",
            "unsupported_parameter",
        )
    changes: dict[str, bytes | None] = dict.fromkeys(("prompt", "echo", "suffix", "best_of", "logprobs"))
    if model is not None:
        changes["model"] = json.dumps(model).encode("ascii")
    if logprobs is not None:
        changes |= {"logprobs": b"true", "top_logprobs": b"%d" % logprobs}
    changes["messages"] = b'[{"role":"user","content":' + _prompt_token(body) + b"}]"
    plan = CompletionPlan(
        echo=prompt if echo else "", logprobs=logprobs is not None, stream=asked.get("stream") is True
    )
    return ChatRequest(rewrite_object(body, changes), plan)


def from_chat(body: bytes, plan: CompletionPlan) -> bytes:
    """Convert chat's whole answer to a completion; any other body, such as an error, is returned as it is."""
    answer = object_or_none(body)
    choices = _choices(answer, "message")
    if answer is None or choices is None:
        return body
    turned = [_choice(choice, position, "message", plan)[0] for position, choice in enumerate(choices)]
    for choice in turned:
        choice["text"] = plan.echo + choice["text"]
    return dump_json(answer | {"object": _OBJECT, "choices": turned})


class FromChatStream(StreamRewriter):
    """Converts chat's stream into one of completions, event by event; comments, errors and the end mark pass as they are.

    ``feed`` raises ``ValueError`` for an event longer than 4 MiB, and for more than 1,024 choices.
    """

    def __init__(self, plan: CompletionPlan) -> None:
        super().__init__(_MAX_EVENT_BYTES)
        self._plan = plan
        # The characters of each choice so far, by index: a missing choice has not begun.
        self._lengths: dict[int, int] = {}

    def rewrite(self, event: Event) -> bytes:
        """Convert a chunk of chat; any other event passes."""
        if not event.is_whole:
            raise ValueError("an event of the stream is longer than 4 MiB")
        chunk = object_or_none(event.data)
        choices = _choices(chunk, "delta")
        if chunk is None or choices is None:
            return event.raw
        turned = self._turned(choices, keep_empty=chunk.get("usage") is not None)
        if choices and not turned:
            return event.without_data()
        return event.with_data(dump_json(chunk | {"object": _OBJECT, "choices": turned}))

    def _turned(self, choices: list[dict[str, Any]], *, keep_empty: bool) -> list[dict[str, Any]]:
        """Convert an event's choices; empty ones, such as the first of each, are left out."""
        turned: list[dict[str, Any]] = []
        for position, chat in enumerate(choices):
            index = _index(chat, position)
            begun = index in self._lengths
            choice, length = _choice(chat, position, "delta", self._plan, self._lengths.get(index, 0))
            self._lengths[index] = length
            if len(self._lengths) > _MAX_CHOICES:
                raise ValueError("the stream has more than 1,024 choices")
            if not begun:
                choice["text"] = self._plan.echo + choice["text"]
            says = choice["text"] or choice["finish_reason"] or choice["logprobs"]
            if says or keep_empty:
                turned.append(choice)
        return turned


def _prompt(asked: Mapping[str, Any]) -> str:
    prompt = asked.get("prompt")
    if isinstance(prompt, list):
        if prompt and all(isinstance(item, int | list) for item in prompt):
            raise NotAdaptable(
                "this model is reached through chat, which takes no token ids: send the prompt as text", "prompt"
            )
        if len(prompt) > 1:
            raise NotAdaptable(
                "this model is reached through chat, which takes one prompt: send one request per prompt", "prompt"
            )
        prompt = prompt[0] if prompt else None
    if not isinstance(prompt, str):
        raise NotAdaptable("prompt must be a string or an array of one string", "prompt")
    return prompt


def _prompt_token(body: bytes) -> bytes:
    """Return the prompt as it is written in the body, with its quotes."""
    token = member_value(body, "prompt") or b""
    return token[1:-1].strip(b" \t\n\r") if token.startswith(b"[") else token


def _echo(asked: Mapping[str, Any]) -> bool:
    echo = asked.get("echo")
    if echo is not None and not isinstance(echo, bool):
        raise NotAdaptable("echo must be true or false", "echo")
    return echo is True


def _logprobs(asked: Mapping[str, Any]) -> int | None:
    logprobs = asked.get("logprobs")
    if logprobs is None:
        return None
    if not _is_integer(logprobs) or not 0 <= logprobs <= _MAX_LOGPROBS:
        raise NotAdaptable(f"logprobs must be an integer from 0 to {_MAX_LOGPROBS}", "logprobs")
    return int(logprobs)


def _check_rest(asked: Mapping[str, Any]) -> None:
    if asked.get("suffix") not in (None, ""):
        raise NotAdaptable("this model is reached through chat, which has no suffix", "suffix", "unsupported_parameter")
    if "messages" in asked:
        raise NotAdaptable("a completion has a prompt and no messages", "messages", "unsupported_parameter")
    best_of = asked.get("best_of")
    if best_of is None:
        return
    n = asked.get("n")
    if not _is_integer(best_of) or best_of not in (1, 1 if n is None else n):
        raise NotAdaptable(
            "this model is reached through chat, which gives every answer that it makes: "
            "best_of must be 1 or the same as n",
            "best_of",
        )


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _choices(answer: Mapping[str, Any] | None, part: str) -> list[dict[str, Any]] | None:
    """Return the choices of an answer of chat, or None for any other body; ``part`` holds each choice's text."""
    choices = None if answer is None else answer.get("choices")
    if not isinstance(choices, list) or not all(_is_choice(choice, part) for choice in choices):
        return None
    return choices


def _is_choice(choice: object, part: str) -> bool:
    if not isinstance(choice, dict):
        return False
    if choice.get(part) is None:
        # Some servers end a stream with a choice that has a finish_reason and no delta.
        return part == "delta" and "text" not in choice
    return isinstance(choice[part], dict)


def _choice(
    chat: Mapping[str, Any], position: int, part: str, plan: CompletionPlan, offset: int = 0
) -> tuple[dict[str, Any], int]:
    """Convert one choice that has had ``offset`` characters; return it with the new number."""
    reason = chat.get("finish_reason")
    text = _text((chat.get(part) or {}).get("content"))
    logprobs = _legacy_logprobs(chat.get("logprobs"), offset) if plan.logprobs else None
    choice = {
        "index": _index(chat, position),
        "text": text,
        "logprobs": logprobs,
        "finish_reason": "stop" if reason in _TOOL_STOPS else reason,
    }
    return choice, offset + len(text)


def _index(chat: Mapping[str, Any], position: int) -> int:
    index = chat.get("index")
    return index if isinstance(index, int) else position


def _text(content: object) -> str:
    """Return a message's text, which some servers write as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(part for part in parts if isinstance(part, str))
    return content if isinstance(content, str) else ""


def _legacy_logprobs(logprobs: object, offset: int) -> dict[str, Any] | None:
    """Convert chat's list of tokens to the four lists of a completion; None where there are no tokens."""
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if not isinstance(content, list) or not content:
        return None
    tokens: list[str] = []
    chosen: list[Any] = []
    tops: list[dict[str, Any]] = []
    offsets: list[int] = []
    for entry in content:
        if not isinstance(entry, dict) or not isinstance(entry.get("token"), str):
            return None
        tokens.append(entry["token"])
        chosen.append(entry.get("logprob"))
        tops.append(_top(entry))
        offsets.append(offset)
        offset += len(entry["token"])
    return {"tokens": tokens, "token_logprobs": chosen, "top_logprobs": tops, "text_offset": offsets}


def _top(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the likeliest tokens at one place; the chosen token is always among them."""
    top: dict[str, Any] = {}
    likeliest = entry.get("top_logprobs")
    for other in likeliest if isinstance(likeliest, list) else ():
        if isinstance(other, dict) and isinstance(other.get("token"), str):
            top.setdefault(other["token"], other.get("logprob"))
    top.setdefault(entry["token"], entry.get("logprob"))
    return top
