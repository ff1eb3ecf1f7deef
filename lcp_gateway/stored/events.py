"""Server-sent events, read as they come, each with the bytes that it was made of."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

_BOM = b"\xef\xbb\xbf"
# An event ends with an empty line; those before its first line belong to it. The repeats are possessive, or the two halves
# of one \r\n could pass for two line ends. It begins with a line end, which is looked for much faster than anything else.
_END = re.compile(rb"(?:\n(?<=[^\r\n]\n)|\r(?<=[^\r\n]\r)\n?+)(?:\n|\r\n?+)")
# As far back as an event's end can begin before bytes that have just come.
_END_BYTES = 4
_DATA = b"data"
_NAME = b"event"
_CARRIAGE_RETURN = 0x0D


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name ("" where none is given), its data lines joined by line feeds, and all of its bytes.

    Bytes without data, as comments are, make an event too, so that the events' bytes together are the stream's.
    """

    name: str
    data: bytes = field(repr=False)
    raw: bytes = field(repr=False)

    def with_data(self, data: bytes) -> bytes | None:
        """Give its bytes with other data of one line; None where the data is not on exactly one line."""
        lines = self.raw.splitlines(keepends=True)
        places = [place for place, line in enumerate(lines) if _is_data(line.removeprefix(_BOM))]
        if len(places) != 1:
            return None
        line = lines[places[0]]
        end = line[len(line.rstrip(b"\r\n")) :]
        start = line.find(b":") + 1
        if not start:
            return None
        if line.startswith(b" ", start):
            start += 1
        lines[places[0]] = line[:start] + data + end
        return b"".join(lines)


class EventReader:
    """Cuts a stream into its events, however it comes in chunks. It holds on to the bytes of one event.

    ``feed`` and ``rest`` give them read, ``cut`` and ``end`` only the bytes of each; a stream is taken by one of the pairs.
    """

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, chunk: bytes) -> list[Event]:
        """Give the events that are now whole."""
        return [read_event(raw) for raw in self.cut(chunk)]

    def rest(self) -> list[Event]:
        """Give what came after the last whole event as one more, once there is no more to come."""
        return [read_event(raw) for raw in self.end()]

    def cut(self, chunk: bytes) -> list[bytes]:
        """Give the bytes of the events that are now whole."""
        searched = max(len(self._held) - _END_BYTES, 0)
        self._held += chunk
        held = self._held
        raws: list[bytes] = []
        start = 0
        for match in _END.finditer(held, searched):
            end = match.end()
            if end == len(held) and held[-1] == _CARRIAGE_RETURN:
                # The line end may have a second byte that has not come. No break: the search must run out before the
                # buffer may shrink.
                continue
            raws.append(bytes(held[start:end]))
            start = end
        del held[:start]
        return raws

    def end(self) -> list[bytes]:
        """Give the bytes after the last whole event, once there is no more to come."""
        raw = bytes(self._held)
        self._held.clear()
        return [raw] if raw else []


def read_event(raw: bytes) -> Event:
    """Read the bytes of one event."""
    name = b""
    data: list[bytes] = []
    for line in raw.removeprefix(_BOM).lstrip(b"\r\n").splitlines():
        if line.startswith(b":"):
            continue
        key, _, value = line.partition(b":")
        if key == _DATA:
            data.append(value.removeprefix(b" "))
        elif key == _NAME:
            name = value.removeprefix(b" ")
    return Event(name.decode("utf-8", "replace"), b"\n".join(data), raw)


def telling_events(blocks: Iterable[bytes]) -> Iterator[Event]:
    """Give the events of a whole stream whose data may be a JSON object; comments and marks are passed over."""
    reader = EventReader()
    for block in blocks:
        yield from map(read_event, filter(may_tell, reader.cut(block)))
    yield from map(read_event, filter(may_tell, reader.end()))


def may_tell(raw: bytes) -> bool:
    """Tell whether an event's data may be a JSON object. A look that costs nothing: a stream can be all comments."""
    return b"{" in raw


def _is_data(line: bytes) -> bool:
    return line.startswith(_DATA) and line[len(_DATA) :].strip(b"\r\n")[:1] in (b"", b":")
