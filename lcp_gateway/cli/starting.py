"""Starts a gateway in the background, and waits until it is ready or is not going to be."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import lcp_gateway
from lcp_gateway.__about__ import __version__
from lcp_gateway.cli.background import marked
from lcp_gateway.cli.ending import end
from lcp_gateway.cli.instances import Files, last_start_file, make_folder
from lcp_gateway.cli.log_tail import Follower
from lcp_gateway.cli.pid_file import Record, remove_pid_file, write_pid_file
from lcp_gateway.cli.processes import Process, find_process
from lcp_gateway.cli.readiness import Readiness, ask_readiness
from lcp_gateway.config import specs
from lcp_gateway.telemetry.log_file import open_log

LISTENING = b" listening on http"
"""What the gateway's greeting says once the port is its own. An answer before that would be somebody else's."""

_PAUSE_S = 0.1
_END_WITHIN_S = 10.0
_KEPT_LOG_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is started, and how it is told from others. ``flags`` go by the names of the settings, as they were typed."""

    address: str
    url: str
    flags: Mapping[str, str | bool]
    config: Path | None
    folder: Path
    files: Files
    variables: tuple[str, ...]
    timeout_s: float


class NotStarted(Exception):
    """The gateway did not become ready, and is gone again.

    ``exit_code`` is its own where it ended by itself. ``log`` is the end of what it wrote.
    """

    def __init__(self, why: str, *, exit_code: int = 1, log: bytes = b"") -> None:
        super().__init__(why)
        self.exit_code = exit_code
        self.log = log


def start_process(launch: Launch) -> tuple[Process, Readiness]:
    """Start it and wait until it is ready. Nothing of it is left behind when that fails, or is interrupted.

    Raises:
        NotStarted: it ended, or was not ready in time.
        OSError: one of its files cannot be written.
    """
    for folder in (launch.files.pid_file.parent, launch.files.log_file.parent):
        make_folder(folder)
    with Follower(launch.files.log_file) as log, _Interruptible():
        child = _spawn(launch)
        # One that has ended already is nobody: what is waited for below says so.
        process = find_process(child.pid) or Process(child.pid, "")
        try:
            record = _record(launch, process)
            write_pid_file(launch.files.pid_file, record)
            readiness = _wait(child, log, launch)
        except BaseException:
            # Its end is waited for by us: who is not waited for stays in the table of processes.
            end(process, _END_WITHIN_S, lambda: None)
            remove_pid_file(launch.files.pid_file, process)
            child.wait()
            raise
    with contextlib.suppress(OSError):
        # It stays when the gateway is stopped, for a later restart; without it that takes no flags over.
        write_pid_file(last_start_file(launch.files.pid_file), record)
    return process, readiness


def arguments(flags: Mapping[str, str | bool], config: Path | None) -> list[str]:
    """Write flags as they stand on a command line."""
    known = specs()
    written = ["--config", str(config)] if config is not None else []
    for name, value in flags.items():
        flag = known[name].flag
        match value:
            case True:
                written.append(flag)
            case False:
                written.append(f"--no-{flag.removeprefix('--')}")
            case _:
                written.append(f"{flag}={value}")
    return written


def _spawn(launch: Launch) -> subprocess.Popen[bytes]:
    environment = marked(os.environ)
    if Path(lcp_gateway.__file__).parents[1] != launch.folder:
        # Whatever lies in the folder that somebody happens to be in, it is not the program.
        environment["PYTHONSAFEPATH"] = "1"
    log = open_log(launch.files.log_file)
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter, module and flags
            [
                sys.executable,
                "-m",
                "lcp_gateway",
                "serve",
                *arguments(launch.flags, launch.config),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=launch.folder,
            # Neither the terminal's end nor its Ctrl-C reaches it.
            start_new_session=True,
        )
    finally:
        os.close(log)


def _record(launch: Launch, process: Process) -> Record:
    return Record(
        process=process,
        address=launch.address,
        url=launch.url,
        version=__version__,
        since=datetime.now(UTC),
        log_file=launch.files.log_file,
        folder=launch.folder,
        config=launch.config,
        flags=dict(launch.flags),
        variables=launch.variables,
    )


def _wait(child: subprocess.Popen[bytes], log: Follower, launch: Launch) -> Readiness:
    deadline = time.monotonic() + launch.timeout_s
    told, listening, why = b"", False, "it does not listen yet"
    while True:
        code = child.poll()
        told += log.read()
        if code is not None:
            raise NotStarted(_ended(code), exit_code=max(code, 1), log=told)
        listening = listening or LISTENING in told
        told = told[-_KEPT_LOG_BYTES:]
        if listening:
            readiness = ask_readiness(launch.url)
            if readiness is not None and readiness.ready:
                return readiness
            why = "; ".join(readiness.reasons) if readiness else "it does not answer"
        if time.monotonic() > deadline:
            raise NotStarted(
                f"the gateway was not ready within {launch.timeout_s:g} s (start_timeout_s) and was ended: {why}",
                log=told,
            )
        time.sleep(_PAUSE_S)


def _ended(code: int) -> str:
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    return f"the gateway ended {how} before it was ready"


class _Interruptible:
    """Lets signals that would end this process raise instead, so that what it has begun can be undone."""

    _NUMBERS = (signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        for number in self._NUMBERS:
            self._before[number] = signal.signal(number, _raise)

    def __exit__(self, *_error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
