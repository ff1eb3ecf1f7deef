"""``python -m bench.instructions``: what a whole answer costs in machine instructions, counted by valgrind's callgrind.

A count of instructions is the same on a machine that does other work; it knows nothing of the kernel, of caches and of waiting.
``--against CHECKOUT`` counts another checkout of the gateway as well, with this one's stand-in and environment.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from bench import processes, standin
from tests.support.ports import free_port

_ROOT = Path(__file__).resolve().parent.parent
_WARM_UP = 160
_START_TIMEOUT_S = 300.0
_ANSWER_TIMEOUT_S = 300.0
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_COUNTED = re.compile(r"I\s+refs:\s+([\d,]+)")


@contextlib.contextmanager
def _counted(checkout: Path, folder: Path, daemon: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """Run a checkout's gateway under callgrind, which does not count yet; yield its port and process."""
    port = free_port()
    settings = {
        "PYTHONPATH": str(checkout),
        "PYTHONHASHSEED": "0",
        "XDG_CONFIG_HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
        "LCP_GATEWAY_HTTP_ADDR": f"127.0.0.1:{port}",
        "LCP_GATEWAY_LCPD_GRPC_ADDR": daemon,
        "LCP_GATEWAY_LOG_FORMAT": "json",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LCP_GATEWAY_")}
    counting = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder / 'callgrind'}"]
    with (folder / "report").open("w") as report:
        process = subprocess.Popen(
            [*counting, sys.executable, "-m", "lcp_gateway", "serve", "--no-preflight"],
            cwd=checkout,
            env={**kept, **settings},
            stdout=subprocess.DEVNULL,
            stderr=report,
        )
        try:
            yield port, process
        finally:
            process.terminate()
            process.wait(_START_TIMEOUT_S)


async def _connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while True:
        try:
            return await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            if time.monotonic() > deadline:
                raise SystemExit("the gateway did not start") from None
            await asyncio.sleep(0.2)


async def _ask(connection: tuple[asyncio.StreamReader, asyncio.StreamWriter], count: int) -> None:
    reader, writer = connection
    messages = [{"role": "user", "content": "word " * 90}]
    body = json.dumps({"model": standin.MODEL, "messages": messages}).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    for _ in range(count):
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        async with asyncio.timeout(_ANSWER_TIMEOUT_S):
            answer = await reader.readuntil(b"\r\n\r\n")
            if not answer.startswith(b"HTTP/1.1 200"):
                raise SystemExit(answer.decode(errors="replace"))
            await reader.readexactly(int(_LENGTH.search(answer)[1]))


async def _load(port: int, process: subprocess.Popen, clients: int, requests: int) -> None:
    connections = [await _connected(port) for _ in range(clients)]

    async def all_ask(count: int) -> None:
        await asyncio.gather(*(_ask(one, count // clients) for one in connections))

    def count(switch: str) -> None:
        control = ["callgrind_control", "--instr=" + switch, str(process.pid)]
        subprocess.run(control, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    await all_ask(_WARM_UP)
    count("on")
    await all_ask(requests)
    count("off")
    for _, writer in connections:
        writer.close()


def measure(checkout: Path, clients: int, requests: int) -> float:
    """Return the instructions of one request, in millions."""
    with tempfile.TemporaryDirectory(prefix="lcp-gateway-bench-") as name, processes.stand_in_on_port() as daemon:
        folder = Path(name)
        with _counted(checkout, folder, daemon) as (port, process):
            asyncio.run(_load(port, process, clients, requests))
        counted = _COUNTED.findall((folder / "report").read_text())
        return int(counted[-1].replace(",", "")) / (requests // clients * clients) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.instructions", description=__doc__)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout, to be compared with")
    parser.add_argument("--clients", default="1,16", help="numbers of clients")
    parser.add_argument("--requests", type=int, default=320, help="how many are counted")
    arguments = parser.parse_args()
    if shutil.which("callgrind_control") is None:
        raise SystemExit("valgrind is needed: its callgrind counts")
    for clients in [int(number) for number in arguments.clients.split(",")]:
        ours = measure(_ROOT, clients, arguments.requests)
        line = f"{clients:3} clients: {ours:6.3f} million instructions a request"
        if arguments.against is not None:
            other = measure(arguments.against.resolve(), clients, arguments.requests)
            line += f"; {arguments.against}: {other:6.3f}; ratio {ours / other:.3f}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
