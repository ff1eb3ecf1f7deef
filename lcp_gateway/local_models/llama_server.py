"""One `llama-server` as a child process: its command, its start, its health, its end.

Facts about it (flags, /health, /v1) are from llama.cpp's tools/server/README.md and were seen with its release 0.7.0.
"""

import asyncio
import contextlib
import hashlib
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import aiohttp
import psutil

from lcp_gateway.leash import start_leashed, stop_leashed, wait_leashed
from lcp_gateway.local_models.options import LocalModel, LocalModelOptions

LOG_BYTES_MAX = 8 * 1024 * 1024
"""A log that is longer is emptied: llama-server writes some lines for each request."""

_LOADED = 200  # 503 while it loads
_POLL_S = 0.1


class LoadFailed(Exception):
    """A model could not be loaded; the text says why, in one line. ``log_path`` is for the operator, not for clients."""

    def __init__(self, message: str, log_path: Path | None = None) -> None:
        super().__init__(message)
        self.log_path = log_path


class LlamaServer:
    """A child process that serves one model. ``on_exit`` is called once, when it has ended, in whatever way."""

    def __init__(
        self, model: LocalModel, options: LocalModelOptions, session: aiohttp.ClientSession, on_exit: Callable[[], None]
    ) -> None:
        self.model = model
        self._options = options
        self._session = session
        self._on_exit = on_exit
        self._folder = Path(options.folder)
        self.log_path = self._folder / f"{_file_name(model.name)}.log"
        self._key = secrets.token_urlsafe(32)
        self._port = 0
        self._process: asyncio.subprocess.Process | None = None
        self._waiter: asyncio.Task[None] | None = None

    @property
    def base_url(self) -> str:
        """Where it listens, without a slash at the end."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def headers(self) -> dict[str, str]:
        """What a request to it must carry."""
        return {"authorization": f"Bearer {self._key}"}

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.returncode is None

    def resident_bytes(self) -> int:
        """What it holds in memory now, with the pages of its file."""
        if self._process is None:
            return 0
        total = 0
        with contextlib.suppress(psutil.Error):
            shell = psutil.Process(self._process.pid)
            for process in (shell, *shell.children(recursive=True)):
                total += process.memory_info().rss
        return total

    async def start(self) -> None:
        """Start it and wait until it has loaded its model, as long as its process lives.

        A model that is fetched first may take an hour: loading is no failure.

        Raises:
            LoadFailed: it ended before it was ready, or could not be started.
        """
        key_path = self._folder / f"{_file_name(self.model.name)}.key"
        try:
            self._process = await self._start_process(key_path)
        except OSError as error:
            raise LoadFailed(f"llama-server cannot be started: {error.strerror}") from None
        self._waiter = asyncio.create_task(self._wait(self._process), name="llama_server")
        try:
            while not await self._healthy():
                if not self.running:
                    raise LoadFailed(
                        f"llama-server ended with code {self._process.returncode} while it loaded {self.model.name!r:.80}",
                        self.log_path,
                    )
                await asyncio.sleep(_POLL_S)
        finally:
            # Read at its start, and not needed after it.
            key_path.unlink(missing_ok=True)

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL for its whole session if it does not follow. Safe to call at any time."""
        if self._process is None or self._waiter is None:
            return
        await stop_leashed(self._process)
        await asyncio.shield(self._waiter)

    def bound_log(self) -> None:
        """Empty the log if it is long; the process appends, so it goes on at the beginning."""
        with contextlib.suppress(OSError):
            if self.log_path.stat().st_size > LOG_BYTES_MAX:
                os.truncate(self.log_path, 0)

    async def _start_process(self, key_path: Path) -> asyncio.subprocess.Process:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._port = _free_port()
        _write_private(key_path, self._key)
        log = os.open(self.log_path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND, 0o600)
        try:
            return await start_leashed(self._command(key_path), stdout=log, stderr=log)
        finally:
            os.close(log)

    def _command(self, key_path: Path) -> list[str]:
        model, options = self.model, self._options
        source = ["--model", model.path] if model.path else ["-hf", model.hf_repo]
        return [
            *(options.executable, *source),
            *("--host", "127.0.0.1", "--port", str(self._port)),
            *("--alias", model.name, "--api-key-file", str(key_path)),
            *(("--ctx-size", str(model.context_length)) if model.context_length else ()),
            *(("--embeddings",) if model.type == "embedding" else ()),
            *options.arguments,
            *model.arguments,
        ]

    async def _healthy(self) -> bool:
        try:
            async with self._session.get(
                f"{self.base_url}/health", timeout=aiohttp.ClientTimeout(total=5), allow_redirects=False
            ) as response:
                return response.status == _LOADED
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def _wait(self, process: asyncio.subprocess.Process) -> None:
        await wait_leashed(process)
        self._on_exit()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(text + "\n")


def _file_name(name: str) -> str:
    """Return a name for files, its own for each model: model names may hold slashes, colons and more."""
    readable = "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)[:80].lstrip(".")
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
