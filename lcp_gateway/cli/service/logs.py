"""``lcp-gateway logs``: the log of a gateway in the background, its last lines and those that follow, through its rotations."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, BinaryIO, Self

import typer

from lcp_gateway.cli.options import setting_flags
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.cli.service.instances import (
    INSTANCE_SETTINGS,
    InstanceQuery,
    files_of,
    find_instance,
    is_named_by_flag,
    read_query,
    run_folder,
)
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


class LogFollower:
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


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_PAUSE_MS = 250


@app.command()
@setting_flags(groups=(), also=(*INSTANCE_SETTINGS, "log_file"))
def logs(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="Begin with so many lines.")
    ] = 100,
) -> int:
    """Print the log of the gateway in the background. It need not run."""
    path = _log_of(read_query(flags, config))
    try:
        with LogFollower(path) as follower:
            _print(last_lines(path, lines))
            while follow and _wait():
                _print(follower.read())
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        _forget_output()
    except FileNotFoundError:
        raise CommandFailed(f"there is no log at {path}: no gateway was started there") from None
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be read: {error.strerror}") from None
    return 0


def _log_of(question: InstanceQuery) -> Path:
    """Find the log that is meant: of the gateway that is, or of the last one that was."""
    usual = files_of(question.settings).log_file
    if question.flags.get("log_file") is not None:
        return usual
    found = find_instance(question)
    if found is not None and found.record is not None:
        return found.record.log_file
    question.fail_for_problems()
    configured = "log_file" in question.found.given
    if usual.exists() or configured or is_named_by_flag(question):
        return usual
    others = sorted(run_folder(question.settings).glob("gateway-*.log"))
    if len(others) > 1:
        raise CommandFailed(
            "there are several logs: name one with --http-addr or --log-file", *map(str, others)
        )
    return others[0] if others else usual


def _print(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _wait() -> bool:
    """Wait a moment; false when nobody reads our output any more, which no writing tells while the log is silent."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(_PAUSE_MS):
        _forget_output()
        return False
    return True


def _forget_output() -> None:
    """Have what the interpreter writes at its end go nowhere, and not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
