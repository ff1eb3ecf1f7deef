"""The Redis that the workers of one gateway share where none is configured: private, in memory, ended with the supervisor."""

import asyncio
import shutil
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from lcp_gateway.leash import start_leashed, stop_leashed, wait_leashed

_SERVERS: Final = ("redis-server", "valkey-server")
_START_S: Final = 15.0
_LOOK_EVERY_S: Final = 0.02
_FIRST_PAUSE_S: Final = 0.1
_LONGEST_PAUSE_S: Final = 5.0
_MAX_REASON_CHARACTERS: Final = 300


class RedisMissing(Exception):
    """No server is installed, or it does not start; the message says what to do."""


def find_server() -> str:
    """Return the path of a server of Redis's protocol.

    Raises:
        RedisMissing: none is installed.
    """
    found = next(filter(None, map(shutil.which, _SERVERS)), None)
    if found is None:
        raise RedisMissing(
            f"several workers share their state in a Redis, and neither {' nor '.join(_SERVERS)} is installed: install one "
            "(Debian and Ubuntu: apt install redis-server; Fedora: dnf install valkey; macOS: brew install redis), set "
            "redis_url, or use workers = 1"
        )
    return found


class PrivateRedis:
    """Runs a server on a unix socket in a folder that only this user can enter. It writes nothing to a disk.

    A server that dies is started again; what was in it is lost, as by any Redis that fails. ``report`` is called with a
    sentence then.
    """

    def __init__(
        self, server: str, folder: Path, environ: Mapping[str, str], report: Callable[[str], None] = lambda _: None
    ) -> None:
        self._server = server
        self._socket = folder / "redis.sock"
        self._folder = folder
        self._environ = environ
        self._report = report
        self._process: Process | None = None

    @property
    def url(self) -> str:
        """Where the workers reach it."""
        return f"unix://{self._socket}"

    async def start(self) -> None:
        """Start it, and wait until it answers.

        Raises:
            RedisMissing: it ended, or did not answer in time.
        """
        self._socket.unlink(missing_ok=True)
        command = [
            *(self._server, "--port", "0", "--unixsocket", str(self._socket), "--unixsocketperm", "700"),
            *("--save", "", "--appendonly", "no", "--dir", str(self._folder)),
            *("--daemonize", "no", "--databases", "1", "--loglevel", "warning"),
        ]
        self._process = process = await start_leashed(command, stdout=PIPE, stderr=STDOUT, environ=self._environ)
        try:
            async with asyncio.timeout(_START_S):
                while not await self._answers():
                    if process.returncode is not None:
                        raise RedisMissing(f"{self._server} ended at once: {await _last_words(process)}")
                    await asyncio.sleep(_LOOK_EVERY_S)
        except TimeoutError:
            await self.stop()
            raise RedisMissing(f"{self._server} did not answer within {_START_S:g} s") from None

    async def keep_running(self) -> None:
        """Start it again each time that it ends, and each time that it could not be started, until cancelled."""
        pause_s = _FIRST_PAUSE_S
        while True:
            if (process := self._process) is not None:
                # Its output has to be read, or it would wait.
                while process.stdout is not None and await process.stdout.read(4096):
                    pass
                code = await wait_leashed(process)
                self._report(f"the private Redis ended with code {code}; it starts again in {pause_s:g} s")
            await asyncio.sleep(pause_s)
            try:
                await self.start()
            except (RedisMissing, OSError) as error:
                self._report(str(error))
                pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
            else:
                pause_s = _FIRST_PAUSE_S

    async def stop(self) -> None:
        """End it."""
        process, self._process = self._process, None
        if process is not None:
            await stop_leashed(process)

    async def _answers(self) -> bool:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._socket))
        except OSError:
            return False
        try:
            writer.write(b"PING\r\n")
            return (await reader.readline()).startswith(b"+PONG")
        except OSError:
            return False
        finally:
            writer.close()


async def _last_words(process: Process) -> str:
    """Return the end of a server's output: its reason."""
    output = b"" if process.stdout is None else await process.stdout.read()
    lines = output.decode("utf-8", "replace").strip().splitlines()
    return lines[-1][-_MAX_REASON_CHARACTERS:] if lines else f"code {process.returncode}"
