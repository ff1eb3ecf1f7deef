"""Holds back the mark that ends a stream until the stream is known to be whole."""

from lcp_gateway.purchase.task import TaskKind

# What makes a client stop reading and believe that it has everything.
_MARKS = {
    TaskKind.CHAT_COMPLETIONS: (b"data: [DONE]", b"data:[DONE]"),
    TaskKind.COMPLETIONS: (b"data: [DONE]", b"data:[DONE]"),
    TaskKind.RESPONSES: (
        b"event: response.completed",
        b"event:response.completed",
        b"event: response.incomplete",
        b"event:response.incomplete",
    ),
}
# More than this after a mark shows that it was none.
_MAX_HELD_BYTES = 4 * 1024 * 1024


class EndingHold:
    """Passes a stream's bytes on in order; from a line that begins with an end mark on, keeps them until ``rest``.

    The hash of a result is known only after its last byte, and by then a client that has seen the mark is gone.
    """

    def __init__(self, kind: TaskKind) -> None:
        self._marks = _MARKS[kind]
        self._line = b""
        self._in_line = False
        self._found = False
        self._held: list[bytes] = []
        self._held_bytes = 0

    def feed(self, chunk: bytes) -> bytes:
        """Give the bytes that may go out now."""
        if self._found:
            return self._keep(chunk)
        if (
            not self._line
            and not self._in_line
            and chunk.endswith(b"\n")
            and not self._begins(chunk)
        ):
            return chunk
        data = self._line + chunk
        position = self._mark_in(data)
        if position >= 0:
            self._found, self._line = True, b""
            return data[:position] + self._keep(data[position:])
        line_start = data.rfind(b"\n") + 1
        line = data[line_start:]
        if line and (line_start or not self._in_line) and self._may_become_mark(line):
            self._line, self._in_line = line, False
            return data[:line_start]
        self._line, self._in_line = b"", bool(line)
        return data

    def rest(self) -> bytes:
        """Give what was kept, once the stream is known to be whole."""
        rest = self._line + b"".join(self._held)
        self._line, self._held = b"", []
        return rest

    def _keep(self, data: bytes) -> bytes:
        self._held.append(data)
        self._held_bytes += len(data)
        if self._held_bytes <= _MAX_HELD_BYTES:
            return b""
        released, self._held = b"".join(self._held), []
        self._held_bytes, self._found = 0, False
        self._in_line = not released.endswith(b"\n")
        return released

    def _begins(self, chunk: bytes) -> bool:
        """Tell whether a chunk that begins at a line's start holds a mark: the usual case, made cheap."""
        return any(mark in chunk for mark in self._marks)

    def _mark_in(self, data: bytes) -> int:
        if not self._in_line and data.startswith(self._marks):
            return 0
        found = [at + 1 for mark in self._marks if (at := data.find(b"\n" + mark)) >= 0]
        return min(found, default=-1)

    def _may_become_mark(self, line: bytes) -> bool:
        return any(mark.startswith(line) for mark in self._marks)
