"""Chat completions: assembled from the chunks of a stream, and listed message by message."""

from collections.abc import Mapping
from typing import Any, TypeGuard

# Members for the stream's own use, which are not part of the completion.
_STREAM_ONLY = frozenset({"object", "choices", "obfuscation"})
# Every chunk repeats these.
_HEAD = ("id", "created", "model")
# Sent once, whole; some servers repeat it, or send it empty later.
_ONCE = frozenset({"role", "id", "type"})
# Sent once as well, but it may come in pieces.
_NAME = "name"
_CALLS = "tool_calls"
# Objects that come in pieces; of any other the last one counts.
_IN_PIECES = frozenset({"function", "custom", "function_call", "audio"})
# A message has tool calls, those have a function, and its members do not come in pieces.
_MESSAGE_DEPTH = 2
_MAX_CHOICES = 1024
_MAX_IN_PIECES = 4096


class ChatAssembly:
    """Assembles a chat completion from the chunks of its stream, in time and memory proportional to them."""

    def __init__(self) -> None:
        self._head: dict[str, Any] = {}
        self._others: dict[str, Any] = {}
        self._choices: dict[int, _Choice] = {}
        self.begun = False

    def add(self, chunk: Mapping[str, Any]) -> None:
        """Add the next event's object; one without choices is not a chunk, and is ignored.

        Raises:
            ValueError: there are more than 1,024 choices, or more than 4,096 objects in pieces in one list.
        """
        choices = chunk.get("choices")
        if not isinstance(choices, list):
            return
        self.begun = True
        for key, value in chunk.items():
            if key in _HEAD:
                self._head[key] = self._head.get(key) or value
            elif key not in _STREAM_ONLY:
                _put_last(self._others, key, value)
        for position, choice in enumerate(choices):
            if isinstance(choice, dict):
                index = choice.get("index")
                place = index if _is_integer(index) else position
                self._choice(place).add(choice)

    def document(self) -> dict[str, Any]:
        """Return the completion so far."""
        choices = [self._choices[index].document(index) for index in sorted(self._choices)]
        return {**self._head, "object": "chat.completion", "choices": choices, **self._others}

    def _choice(self, index: int) -> "_Choice":
        choice = self._choices.get(index)
        if choice is None:
            if len(self._choices) == _MAX_CHOICES:
                raise ValueError("the stream has more than 1,024 choices")
            choice = self._choices[index] = _Choice()
        return choice


class _Choice:
    def __init__(self) -> None:
        self._message = _Pieces(_MESSAGE_DEPTH)
        self._logprobs: _Pieces | None = None
        self._others: dict[str, Any] = {}

    def add(self, choice: Mapping[str, Any]) -> None:
        for key, value in choice.items():
            # Some servers send the whole message in one event.
            if key in {"delta", "message"}:
                if isinstance(value, dict):
                    self._message.add(value)
            elif key == "logprobs":
                if isinstance(value, dict):
                    self._logprobs = self._logprobs or _Pieces(0)
                    self._logprobs.add(value)
            elif key != "index":
                _put_last(self._others, key, value)

    def document(self, index: int) -> dict[str, Any]:
        return {
            "index": index,
            "message": {"role": "assistant", "content": None} | self._message.whole(),
            "logprobs": None if self._logprobs is None else self._logprobs.whole(),
            "finish_reason": None,
        } | self._others


class _Pieces:
    """An object whose members come in pieces: texts and lists follow one another, of other values the last counts."""

    def __init__(self, depth: int) -> None:
        """``depth`` is how many levels down objects come in pieces."""
        self._depth = depth
        self._members: dict[str, Any] = {}

    def add(self, delta: Mapping[str, Any]) -> None:
        for key, value in delta.items():
            held = self._members.get(key)
            if value is None:
                self._members.setdefault(key, None)
            elif key in _ONCE and isinstance(value, str):
                self._members[key] = held or value
            elif isinstance(value, str):
                if not isinstance(held, _Text):
                    held = self._members[key] = _Text()
                held.add(value, once=key == _NAME)
            elif isinstance(value, list):
                if not isinstance(held, _List):
                    held = self._members[key] = _List(self._depth, is_calls=key == _CALLS)
                held.add(value)
            elif isinstance(value, dict) and self._depth and key in _IN_PIECES:
                if not isinstance(held, _Pieces):
                    held = self._members[key] = _Pieces(self._depth - 1)
                held.add(value)
            else:
                self._members[key] = value

    @property
    def id(self) -> str | None:
        """The id in one of the pieces."""
        found = self._members.get("id")
        return found if isinstance(found, str) and found else None

    def whole(self) -> dict[str, Any]:
        return {
            key: value.whole() if isinstance(value, _Text | _List | _Pieces) else value
            for key, value in self._members.items()
        }


class _Text:
    def __init__(self) -> None:
        self._parts: list[str] = []

    def add(self, part: str, *, once: bool) -> None:
        if not (once and self._parts == [part]):
            self._parts.append(part)

    def whole(self) -> str:
        return "".join(self._parts)


class _List:
    """A list that grows; objects with the same index in it are pieces of one.

    Some servers give all calls the index 0: there another id begins another call.
    """

    def __init__(self, depth: int, *, is_calls: bool) -> None:
        self._depth = depth
        self._is_calls = is_calls and depth > 0
        self._entries: list[Any] = []
        self._indexed: dict[int, list[_Pieces]] = {}
        # The entry that a piece without an id belongs to, and the entries with one.
        self._last: dict[int, _Pieces] = {}
        self._named: dict[tuple[int, str], _Pieces] = {}
        self._count = 0

    def add(self, values: list[Any]) -> None:
        for value in values:
            entry = self._entry(value) if self._depth and isinstance(value, dict) else None
            if entry is None:
                self._entries.append(value)
            else:
                entry.add(value)

    def whole(self) -> list[Any]:
        indexed = [entry for index in sorted(self._indexed) for entry in self._indexed[index]]
        entries = indexed + self._entries
        wholes = [entry.whole() if isinstance(entry, _Pieces) else entry for entry in entries]
        if self._is_calls:
            for call in wholes:
                if isinstance(call, dict):
                    # It numbers the pieces, and is not part of a completion.
                    call.pop("index", None)
        return wholes

    def _entry(self, value: Mapping[str, Any]) -> _Pieces | None:
        """Return the entry that a value is a piece of; None where the value is whole."""
        index = value.get("index")
        if _is_integer(index):
            return self._at(index, value.get("id") if self._is_calls else None)
        if not self._is_calls:
            return None
        if value.get("id") or not self._entries:
            self._entries.append(self._new())
        last = self._entries[-1]
        return last if isinstance(last, _Pieces) else None

    def _at(self, index: int, call_id: object) -> _Pieces:
        entries = self._indexed.setdefault(index, [])
        named = isinstance(call_id, str) and call_id
        entry = self._named.get((index, named)) if named else None
        if entry is None and entries and (not named or self._last[index].id is None):
            entry = self._last[index]
        if entry is None:
            entry = self._new()
            entries.append(entry)
        if named:
            self._named[index, named] = entry
        self._last[index] = entry
        return entry

    def _new(self) -> _Pieces:
        self._count += 1
        if self._count > _MAX_IN_PIECES:
            raise ValueError("a list of the stream has more than 4,096 objects in pieces")
        return _Pieces(self._depth - 1)


def _put_last(members: dict[str, Any], key: str, value: object) -> None:
    """Replace a value, unless the new one is null."""
    if value is not None:
        members[key] = value
    else:
        members.setdefault(key, None)


def _is_integer(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def message_object(message: object, completion_id: str, place: int) -> dict[str, Any]:
    """Return a message in the form of OpenAI's list: with an id of its own, and its parts beside its content."""
    if not isinstance(message, dict):
        return {"id": _own_id(completion_id, place), "role": None, "content": None}
    added: dict[str, Any] = {}
    given = message.get("id")
    if not isinstance(given, str) or not given:
        added["id"] = _own_id(completion_id, place)
    content = message.get("content")
    in_parts = isinstance(content, list)
    if in_parts or "content" not in message:
        added["content"] = None
    if "name" not in message:
        added["name"] = None
    return message | added | {"content_parts": content if in_parts else None}


def _own_id(completion_id: str, place: int) -> str:
    return f"{completion_id}-{place}"
