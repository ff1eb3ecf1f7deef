"""Reading a log that is being written and rotated: its last lines, and what comes after them."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from lcp_gateway.telemetry.log_file import rotated

_BLOCK = 64 * 2**10


def last_lines(path: Path, count: int) -> bytes:
    """Give the last lines of a log, and of the rotated ones before it where it has not as many.

    Raises:
        FileNotFoundError: there is no such log.
        OSError: it cannot be read.
    """
    parts: list[bytes] = []
    left = count
    for number, part in enumerate((path, *rotated(path))):
        if left <= 0:
            break
        try:
            with part.open("rb") as file:
                text = _end_of(file, left)
        except FileNotFoundError:
            # The log itself may be away for a moment, while it is rotated.
            if number == 0 and not rotated(path):
                raise
            continue
        parts.append(text)
        left -= text.count(b"\n") + (bool(text) and not text.endswith(b"\n"))
    return b"".join(reversed(parts))


def _end_of(file: BinaryIO, count: int) -> bytes:
    """Give the last lines of a file, read from its end."""
    at = file.seek(0, os.SEEK_END)
    blocks: list[bytes] = []
    ends = 0
    # One more line end than lines: that of the line before them.
    while at > 0 and ends <= count:
        size = min(_BLOCK, at)
        at -= size
        file.seek(at)
        blocks.append(file.read(size))
        ends += blocks[-1].count(b"\n")
    lines = b"".join(reversed(blocks)).splitlines(keepends=True)
    return b"".join(lines[-count:])


class Follower:
    """Reads what is appended to a log from now on, through its rotations; the log need not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._left_behind = False
        with contextlib.suppress(FileNotFoundError):
            self._file = path.open("rb")
            self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        """Give the follower; the file is closed after the block."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()

    def read(self) -> bytes:
        """Give what has come since the last call, possibly nothing.

        Raises:
            OSError: the log cannot be read.
        """
        return b"".join(self._pieces())

    def _pieces(self) -> Iterator[bytes]:
        if self._file is None:
            with contextlib.suppress(FileNotFoundError):
                self._file = self._path.open("rb")
        if (file := self._file) is None:
            return
        yield file.read()
        if self._names(file):
            # The same file, cut short by somebody: it begins anew.
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
        elif not self._left_behind:
            # The gateway may be about to write its last line into the old file: it is read once more, the next time.
            self._left_behind = True
        else:
            yield from self._go_on_from(file)
            self._left_behind = False

    def _names(self, file: BinaryIO) -> bool:
        """Tell whether the log's name is still that of the file, or nobody's for a moment."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True

    def _go_on_from(self, old: BinaryIO) -> Iterator[bytes]:
        """Go on to the file that has the name now, by way of those that had it in between."""
        between = rotated(self._path)
        newer: Sequence[Path] = ()
        for number, path in enumerate(between):
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(old.fileno())):
                    newer = between[:number]
                    break
        for path in (*reversed(newer), self._path):
            try:
                file = path.open("rb")
            except FileNotFoundError:
                continue
            old.close()
            old = self._file = file
            yield file.read()
