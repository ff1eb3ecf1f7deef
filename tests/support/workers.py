"""The workers of a gateway that has several, as its tests see them."""

import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import psutil

from tests.support.gateway import RunningGateway
from tests.support.wire import Answer, Wire, get

UNTIL_S = 120.0


WORKER = "lcp_gateway.cli.serve.worker"


def runs(process: psutil.Process, program: str) -> bool:
    """Return whether a process runs a module or another program; one that was forked has the module's name alone."""
    return program in " ".join(process.cmdline()) or program.rpartition(".")[2] == process.name()


def children(gateway: RunningGateway, program: str) -> list[psutil.Process]:
    """Return the supervisor's children that run a program."""
    found = []
    for child in psutil.Process(gateway.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if runs(child, program):
                found.append(child)
    return found


def worker_processes(gateway: RunningGateway) -> list[psutil.Process]:
    """Return the processes of the workers."""
    return children(gateway, WORKER)


def worker_of(gateway: RunningGateway, connection: Wire) -> psutil.Process:
    """Return the worker that accepted a connection, which must be open still."""
    ours = connection.socket.getsockname()
    for worker in worker_processes(gateway):
        if any(found.raddr == ours for found in worker.net_connections("tcp")):
            return worker
    raise AssertionError("no worker has the connection")


def until(happened: Callable[[], object], what: str) -> None:
    """Wait until it is true."""
    deadline = time.monotonic() + UNTIL_S
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def running(gateway: RunningGateway) -> int:
    """Return how many workers serve."""
    return get(gateway.port, "/readyz").json["workers"]["running"]


def at_once(count: int, ask: Callable[[int], Answer], threads: int = 32) -> Sequence[Answer]:
    """Call with the numbers from 0, many at one time, and return the answers in their order.

    Each call opens a connection, and connections are spread over the workers.
    """
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(ask, range(count)))


def metric(gateway: RunningGateway, name: str, **labels: str) -> float:
    """Return the sum of the samples of a name that have these labels: 0 before the first."""
    total = 0.0
    text = get(gateway.port, "/metrics").body.decode()
    assert f"# TYPE {name} " in text, name
    for line in text.splitlines():
        matched = re.fullmatch(r"([a-zA-Z_:]+)(?:\{(.*)\})? (\S+)", line)
        if matched and matched[1] == name:
            have = dict(re.findall(r'(\w+)="([^"]*)"', matched[2] or ""))
            if labels.items() <= have.items():
                total += float(matched[3])
    return total
