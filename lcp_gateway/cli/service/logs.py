"""``lcp-gateway logs``: the log of a gateway in the background, its last lines and those that follow, through its rotations."""

import contextlib
import os
import select
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO, Self

import typer

from lcp_gateway.cli.options import command_app, setting_flags
from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.cli.service.instances import (
    INSTANCE_SETTINGS,
    InstanceQuery,
    files_of,
    find_instance,
    read_query,
    run_folder,
)
from lcp_gateway.telemetry.log_output import rotated

_BLOCK = 64 * 2**10


def last_lines(path: Path, count: int) -> bytes:
    """Return the last lines of a log, and of the rotated ones before it where it has fewer.

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
            # The log itself may be missing for a moment, while it is rotated.
            if number == 0 and not rotated(path):
                raise
            continue
        parts.append(text)
        left -= text.count(b"\n") + (bool(text) and not text.endswith(b"\n"))
    return b"".join(reversed(parts))


def _end_of(file: BinaryIO, count: int) -> bytes:
    """Return the last lines of a file, read from its end."""
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
    """Reads the text appended to a log from now on, through its rotations; the log need not exist yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._left_behind = False
        with contextlib.suppress(FileNotFoundError):
            self._file = path.open("rb")
            self._file.seek(0, os.SEEK_END)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        if self._file is not None:
            self._file.close()

    def read(self) -> bytes:
        """Return the text since the last call, possibly empty.

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
        if self._has_name_of(file):
            # The same file was cut short: it begins again.
            if os.fstat(file.fileno()).st_size < file.tell():
                file.seek(0)
        elif not self._left_behind:
            # The gateway may be about to write its last line into the old file: it is read once more, the next time.
            self._left_behind = True
        else:
            yield from self._continue_from(file)
            self._left_behind = False

    def _has_name_of(self, file: BinaryIO) -> bool:
        """Return whether the log's name is still that of the file, or of none for a moment."""
        try:
            return os.path.samestat(self._path.stat(), os.fstat(file.fileno()))
        except FileNotFoundError:
            return True

    def _continue_from(self, old: BinaryIO) -> Iterator[bytes]:
        """Continue with the file that has the name now, through those that had it in between."""
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


app = command_app()

_PAUSE_MS = 250


@app.command()
@setting_flags(groups=(), also=(*INSTANCE_SETTINGS, "log_file"))
def logs(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Continue with the lines that are written from now on.")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="Begin with the last N lines.")] = 100,
) -> int:
    """Print the log of a gateway in the background, running or not."""
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


def _log_of(query: InstanceQuery) -> Path:
    """Return the log that is meant: of the gateway that runs, or of the last one that did."""
    usual = files_of(query.settings).log_file
    if query.flags.get("log_file") is not None:
        return usual
    found = find_instance(query)
    if found is not None and found.record is not None:
        return found.record.log_file
    query.fail_for_problems()
    configured = "log_file" in query.found.given
    if usual.exists() or configured or query.is_named_by_flag:
        return usual
    logs = sorted(run_folder(query.settings).glob("gateway-*.log"))
    if len(logs) > 1:
        raise CommandFailed("there are several logs: name one with --http-addr or --log-file", *map(str, logs))
    return logs[0] if logs else usual


def _print(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _wait() -> bool:
    """Wait a moment; return False when the reader of the output is gone, which no write shows while the log is silent."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(_PAUSE_MS):
        _forget_output()
        return False
    return True


def _forget_output() -> None:
    """Discard the output that the interpreter writes at its end, so that it does not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
