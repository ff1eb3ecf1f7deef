"""A child process of ``serve``: started early, restarted when it dies, and ended with the gateway."""

import contextlib
import os
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

CONFIG_ERROR = 2
"""The exit code of a child that would fail again: it is not restarted."""

# Variables of systemd that are for the gateway alone: a child with the socket could send messages in its name.
_SYSTEMD_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """When to start a dead child again: pauses double from the first to the longest, for so many failures in a row.

    A run of ``settled_s`` ends a row of failures.
    """

    first_pause_s: float = 0.1
    longest_pause_s: float = 5.0
    in_a_row: int = 8
    settled_s: float = 30.0


RESTARTS = RestartPolicy()


class ChildProcess:
    """Runs a command in a child process while the ``with`` block lasts.

    The child holds our end of a pipe as its standard input and leaves when that ends, so it cannot outlive a gateway
    that was killed. ``name`` is what messages call it. ``secrets`` are variables of its environment alone: each is taken
    out of what it inherits first. ``tell`` is called at every end and restart, from a thread; ``prepare`` before every
    start.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        tell: Callable[[str], None],
        secrets: Mapping[str, str],
        prepare: Callable[[], None] = lambda: None,
        descriptors: Sequence[int] = (),
        restarts: RestartPolicy = RESTARTS,
        stop_timeout_s: float = 3.0,
    ) -> None:
        self._name = name
        self._command = command
        self._tell = tell
        self._secrets = secrets
        self._prepare = prepare
        self._descriptors = descriptors
        self._restarts = restarts
        self._stop_timeout_s = stop_timeout_s
        self._stopping = threading.Event()
        self._guard = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher = threading.Thread(target=self._watch, name=name.replace(" ", "-"), daemon=True)

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def __enter__(self) -> Self:
        """Start the child; it becomes ready while the caller continues."""
        self._start()
        self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child."""
        self._stopping.set()
        with self._guard:
            process = self._process
        if process is not None:
            _end(process, self._stop_timeout_s)
        self._watcher.join(self._stop_timeout_s)

    def _start(self) -> None:
        environment = dict(os.environ)
        for name in (*self._secrets, *_SYSTEMD_VARIABLES):
            environment.pop(name, None)
        environment.update({name: value for name, value in self._secrets.items() if value})
        with self._guard:
            if self._stopping.is_set():
                return
            self._prepare()
            self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                env=environment,
                pass_fds=self._descriptors,
                # Ctrl-C in a terminal reaches a whole process group: the gateway drains first, and needs the child for that.
                start_new_session=True,
            )

    def _watch(self) -> None:
        failures = 0
        while (process := self._process) is not None:
            started = time.monotonic()
            code = process.wait()
            if self._stopping.is_set():
                return
            ran_s = time.monotonic() - started
            failures = 1 if ran_s >= self._restarts.settled_s else failures + 1
            if code == CONFIG_ERROR or failures > self._restarts.in_a_row:
                self._tell(f"the {self._name} ended with code {code} and is not started again")
                return
            pause_s = min(self._restarts.first_pause_s * 2.0 ** (failures - 1), self._restarts.longest_pause_s)
            self._tell(f"the {self._name} ended with code {code}; it starts again in {pause_s:g} s")
            if self._stopping.wait(pause_s):
                return
            try:
                self._start()
            except OSError as error:
                self._tell(f"the {self._name} cannot be started again: {error.strerror}")
                return


def _end(process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """End the child: close its standard input, then send SIGTERM, then SIGKILL."""
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()
    for insist in (process.terminate, process.kill):
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            insist()
        else:
            return
    process.wait()
