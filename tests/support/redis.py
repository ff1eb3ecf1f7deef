"""A real Redis of a test: nothing on disk, on loopback, ended by its process id."""

import os
import shutil
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from tests.support.ports import free_port

START_TIMEOUT_S = 120.0


def binary() -> str:
    """Return the path of redis-server, or skip the test; where CI=true it must be installed."""
    found = shutil.which("redis-server")
    if not found and os.environ.get("CI") != "true":
        pytest.skip("Redis is not installed (Debian's package: redis-server)")
    assert found, "Redis must be installed where CI=true"
    return found


@dataclass
class Commands:
    """The commands that Redis executed, those of scripts included, by name."""

    by_name: Counter[str] = field(default_factory=Counter)

    @property
    def total(self) -> int:
        return self.by_name.total()


@dataclass
class RunningRedis:
    port: int
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [binary(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/tmp",
        )
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, "Redis ended at once"
            with socket.socket() as probe:
                probe.settimeout(START_TIMEOUT_S)
                with suppress(OSError):
                    probe.connect(("127.0.0.1", self.port))
                    probe.sendall(b"PING\r\n")
                    if probe.recv(64).startswith(b"+PONG"):
                        return
            time.sleep(0.02)
        raise AssertionError("Redis did not answer")

    async def forget(self) -> None:
        """Delete everything."""
        client = Redis.from_url(self.url)
        await client.flushdb()
        await client.aclose()

    @asynccontextmanager
    async def counting(self) -> AsyncIterator[Commands]:
        """Count the commands of the block; they are known after it."""
        client, commands = Redis.from_url(self.url), Commands()
        await client.config_resetstat()
        yield commands
        for name, stats in (await client.info("commandstats")).items():
            commands.by_name[name.removeprefix("cmdstat_").partition("|")[0]] += stats["calls"]
        del commands.by_name["config"]
        await client.aclose()

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.process = None


@contextmanager
def running_redis() -> Iterator[RunningRedis]:
    """Run a Redis that keeps nothing on disk."""
    server = RunningRedis(free_port())
    try:
        server.start()
        yield server
    finally:
        server.stop()
