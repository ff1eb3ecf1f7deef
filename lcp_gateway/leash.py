"""A child process that ends with this one, in whatever way this one ends: a shell between the two watches a pipe.

No signal of the system does this on macOS too.
"""

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, Process
from collections.abc import Mapping, Sequence
from typing import Final

# When its standard input ends, the child gets SIGTERM, and SIGKILL five seconds later.
_SHELL: Final = """
exec 3<&0 </dev/null
"$@" 3<&- &
child=$!
{
  read -r _ <&3
  kill -TERM $child
  for _ in 1 2 3 4 5 6 7 8 9 10; do kill -0 $child || exit 0; sleep 0.5; done
  kill -KILL $child
} >/dev/null 2>&1 &
watcher=$!
exec 3<&-
wait $child
code=$?
kill $watcher 2>/dev/null
exit $code
"""
_STOP_S: Final = 10.0


async def start_leashed(
    command: Sequence[str], *, stdout: int, stderr: int, environ: Mapping[str, str] | None = None
) -> Process:
    """Start a command in a session of its own, so that Ctrl-C in a terminal does not reach it.

    Raises:
        OSError: no process can be started. A command that is not found ends with code 127 instead.
    """
    starting = asyncio.ensure_future(
        asyncio.create_subprocess_exec(
            *("/bin/sh", "-c", _SHELL, "sh", *command),
            stdin=PIPE,
            stdout=stdout,
            stderr=stderr,
            env=environ,
            start_new_session=True,
        )
    )
    try:
        return await asyncio.shield(starting)
    except asyncio.CancelledError:
        # Cancelled itself, it would kill the shell alone, and wait for ever for pipes that the command holds.
        with contextlib.suppress(OSError):
            await stop_leashed(await asyncio.shield(starting))
        raise


async def wait_leashed(process: Process) -> int:
    """Wait for the end of a command, and return its exit code; what is left of its session is killed."""
    code = await process.wait()
    if process.stdin is not None:
        process.stdin.close()
    _kill_session(process)
    return code


async def stop_leashed(process: Process) -> None:
    """End a command: SIGTERM, then SIGKILL for its whole session."""
    if process.stdin is not None:
        process.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            await process.wait()
    except TimeoutError:
        _kill_session(process)
        await process.wait()


def _kill_session(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
