"""``python -m tests.soak.streams --streams 512 --seconds 300``: paced streams for minutes, and a daemon killed in the middle.

Each client reads one stream after the other and compares every byte with the stream that it asked for. In the middle the
daemon is killed (SIGKILL) and started again: every stream that runs is cut, none may pass for whole, and all clients
must get whole ones again. The gateway's memory must not grow in the second half of either part.
pytest runs a short version of it. Ends with 1 where anything differs.
"""

import argparse
import asyncio
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import uvloop

from tests.soak.telling_daemon import event
from tests.support.gateway import PATIENT, clean_environment
from tests.support.ports import free_port
from tests.support.promql import ROOT

MIB = 2**20
MODEL = "bench"
AWAY_S = 2.0
PAUSE_AFTER_AN_ERROR_S = 0.5
# The breaker of a peer that failed so often lets the first one through after half a minute.
LONGEST_RETURN_S = 60.0
MOST_GROWTH_MIB = 32
# Results are kept for clients that ask again. So few fill their place soon, and what grows after that is a leak.
KEPT_BYTES = 8 * MIB


@dataclass
class Run:
    """What the clients saw, and what the gateway used."""

    counts: Counter = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    rss_mib: list[tuple[float, float]] = field(default_factory=list)
    back_after_s: float | None = None
    back_at: float = 0.0
    cpu_s: float = 0.0
    ends_at: float = math.inf
    stream_began: asyncio.Event = field(default_factory=asyncio.Event)

    def begun(self):
        """Record that a stream has begun, the first one after the daemon was back above all."""
        self.stream_began.set()
        if self.back_at and self.back_after_s is None:
            self.back_after_s = time.monotonic() - self.back_at

    def growth_mib(self, since_s, until_s):
        """Return by how much the memory grew from the second to the last quarter of a part of the run."""
        within = [rss for at, rss in self.rss_mib if since_s <= at < until_s]
        if len(within) < 8:
            return 0.0
        quarter = len(within) // 4
        return statistics.median(within[-quarter:]) - statistics.median(within[quarter : 2 * quarter])

    def lines(self):
        """Return the report."""
        peak = max(rss for _, rss in self.rss_mib)
        tokens = max(1, self.counts["tokens"])
        back = "-" if self.back_after_s is None else f"{self.back_after_s:.1f} s"
        return [
            f"streams: {dict(self.counts)}",
            f"first stream after the daemon was back: {back}",
            f"gateway: {self.cpu_s / tokens * 1e6:.0f} us a token, {peak:.0f} MiB at most",
            f"problems: {len(self.problems)}",
            *self.problems[:20],
        ]


class Client:
    """Reads streams over plain sockets and checks every event as it comes."""

    def __init__(self, run, port, number, chunks, pause_s):
        self._run, self._port, self._number = run, port, number
        self._chunks, self._pause_s = chunks, pause_s

    async def go_on(self):
        # The first streams have different lengths, so that they do not all end together.
        turn, chunks = 0, 2 + self._chunks * (self._number % 16 + 1) // 16
        while time.monotonic() < self._run.ends_at:
            turn += 1
            try:
                async with asyncio.timeout(60 + 4 * chunks * self._pause_s):
                    ended = await self._one(f"client {self._number} turn {turn}", chunks)
            except (OSError, EOFError, TimeoutError) as error:
                ended = f"no answer: {type(error).__name__}"
            if ended == "whole":
                self._run.counts["whole"] += 1
            else:
                self._run.counts[ended] += 1
                await asyncio.sleep(PAUSE_AFTER_AN_ERROR_S)
            chunks = self._chunks

    async def _one(self, text, chunks):
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(self._request(text, chunks))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                return f"status {head[9:12].decode()} {await self._code(reader)}"
            self._run.begun()
            return await self._body(reader, text, chunks)
        finally:
            writer.close()

    async def _code(self, reader):
        error = json.loads(await reader.read(65_536))["error"]
        return error["code"]

    def _request(self, text, chunks):
        document = {"model": MODEL, "stream": True, "max_tokens": chunks, "seed": round(self._pause_s * 1000)}
        body = json.dumps({**document, "messages": [{"role": "user", "content": text}]})
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
        return f"{head}\r\n\r\n{body}".encode()

    async def _body(self, reader, text, chunks):
        """Compare the body with the stream that was asked for; return how it ended."""
        expected, number, held = event(text, 0), 0, b""
        while True:
            try:
                size = int(await reader.readuntil(b"\r\n"), 16)
                data = (await reader.readexactly(size + 2))[:-2]
            except asyncio.IncompleteReadError:
                return "cut"
            if size == 0:
                if number == chunks - 1 and held == b"data: [DONE]\n\n":
                    return "whole"
                self._run.problems.append(f"{text}: {number} of {chunks} events passed for a whole stream")
                return "cut, and called whole"
            held += data
            while number < chunks - 1 and held.startswith(expected):
                held = held[len(expected) :]
                number += 1
                expected = event(text, number)
                self._run.counts["tokens"] += 1
            if number < chunks - 1 and not expected.startswith(held) and b'"error"' not in held:
                self._run.problems.append(f"{text}: event {number} is not its own")
                return "mixed up"


@contextmanager
def running(*command, log, **environment):
    """Run one program; it is killed at the end if it still runs."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=clean_environment({"PYTHONPATH": str(ROOT), **environment}),
            stdout=output,
            stderr=output,
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


async def listening(port, process):
    async with asyncio.timeout(60):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                assert process.poll() is None, "it ended"
                await asyncio.sleep(0.05)
            else:
                writer.close()
                return


async def watch(run, process, began):
    known = psutil.Process(process.pid)
    while True:
        run.rss_mib.append((time.monotonic() - began, known.memory_info().rss / MIB))
        times = known.cpu_times()
        run.cpu_s = times.user + times.system
        await asyncio.sleep(0.5)


async def soak(*, streams, seconds, pause_s, chunks, folder, returns=True):
    """Run it; return what was seen. ``returns`` is false where the run is too short for the breaker of a dead peer to close."""
    run = Run()
    daemon_port, port = free_port(), free_port()
    address = f"127.0.0.1:{daemon_port}"
    settings = {
        "LCP_GATEWAY_HTTP_ADDR": f"127.0.0.1:{port}",
        "LCP_GATEWAY_LCPD_GRPC_ADDR": address,
        "LCP_GATEWAY_LOG_FORMAT": "json",
        "LCP_GATEWAY_LOG_LEVEL": "warn",
        "LCP_GATEWAY_MAX_CONCURRENT_REQUESTS": "0",
        "LCP_GATEWAY_ANSWERS_MAX_BYTES": str(KEPT_BYTES),
        # Hundreds of streams of one peer are cut at once here, and that is not the peer's end.
        "LCP_GATEWAY_EXPOSURE_BASE_MSAT": "0",
        "LCP_GATEWAY_EXPOSURE_UNPROVEN_MSAT": "0",
        "LCP_GATEWAY_TIMEOUT_EXECUTE_S": str(60 + 4 * chunks * pause_s),
        **PATIENT,
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
    daemon = ("-m", "tests.soak.telling_daemon", address)
    with running("-m", "lcp_gateway", "serve", log=folder / "gateway.log", **settings) as gateway:
        with running(*daemon, log=folder / "daemon.log") as first:
            await listening(port, gateway)
            await asyncio.sleep(1)
            began = time.monotonic()
            watching = asyncio.create_task(watch(run, gateway, began))
            clients = [Client(run, port, number, chunks, pause_s) for number in range(streams)]
            tasks = [asyncio.create_task(client.go_on()) for client in clients]
            await asyncio.sleep(seconds / 2)
            async with asyncio.timeout(120):
                # However slow the machine is, clients have had whole streams, and there is one to be cut.
                while run.counts["whole"] < streams:
                    await asyncio.sleep(0.05)
                run.stream_began.clear()
                await run.stream_began.wait()
            first.kill()
            first.wait()
            half = time.monotonic() - began
            run.ends_at = began + half + seconds / 2
            await asyncio.sleep(AWAY_S)
        with running(*daemon, log=folder / "daemon.log") as second:
            await listening(daemon_port, second)
            run.back_at = time.monotonic()
            await asyncio.wait(tasks)
        for task in tasks:
            task.result()
        watching.cancel()
        assert gateway.poll() is None, "the gateway ended"
    for since, until in ((0, half), (half + AWAY_S + PAUSE_AFTER_AN_ERROR_S, half + seconds / 2)):
        if (grown := run.growth_mib(since, until)) > MOST_GROWTH_MIB:
            run.problems.append(f"memory grew by {grown:.0f} MiB between {since:.0f} and {until:.0f} s")
    if returns and (run.back_after_s is None or run.back_after_s > LONGEST_RETURN_S):
        run.problems.append(f"no stream began within {LONGEST_RETURN_S:.0f} s of the daemon's return")
    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=512)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--pause", type=float, default=0.1, help="seconds between two tokens of a stream")
    parser.add_argument("--tokens", type=int, default=400, help="of one stream")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-soak-") as name:
        run = uvloop.run(
            soak(
                streams=arguments.streams,
                seconds=arguments.seconds,
                pause_s=arguments.pause,
                chunks=arguments.tokens,
                folder=Path(name),
            )
        )
    print("\n".join(run.lines()))
    step = max(1, len(run.rss_mib) // 12)
    print("resident, MiB: " + ", ".join(f"{at:.0f} s {rss:.0f}" for at, rss in run.rss_mib[::step]))
    return 1 if run.problems else 0


if __name__ == "__main__":
    sys.exit(main())
