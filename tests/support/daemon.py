"""Runs `lcp-gateway node` as its own process, as a daemon that can be killed and started again."""

import socket
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.forked import ForkedProcess, start_module
from tests.support.gateway import clean_environment
from tests.support.ports import free_address

START_TIMEOUT_S = 120.0
ROOT = Path(__file__).parents[2]


@dataclass
class Daemon:
    """A node process at an address that stays the same from one start to the next."""

    address: str
    flags: tuple[str, ...] = ()
    module: str = "lcp_gateway"
    variables: Mapping[str, str] = field(default_factory=dict)
    process: ForkedProcess | subprocess.Popen[str] | None = field(default=None, init=False)

    def start(self) -> None:
        self.process = start_module(
            self.module,
            *("node", "--listen", self.address, *self.flags),
            stdout=subprocess.PIPE,
            env=clean_environment(self.variables),
            cwd=ROOT,
            text=True,
        )
        late = threading.Timer(START_TIMEOUT_S, self.process.kill)
        late.start()
        try:
            assert "node ready" in self.process.stdout.readline()
        finally:
            late.cancel()

    def listens(self) -> bool:
        """Return whether it takes connections. A call may not tell: gRPC answers one in the moment of a stop at the call's deadline."""
        host, _, port = self.address.rpartition(":")
        with socket.socket() as probe:
            probe.settimeout(START_TIMEOUT_S)
            return probe.connect_ex((host, int(port))) == 0

    def kill(self) -> None:
        """Kill it with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(60)
            self.process.stdout.close()
            self.process = None


@contextmanager
def daemon(*flags: str, address: str = "", module: str = "lcp_gateway", **variables: str) -> Iterator[Daemon]:
    """Run a node for the block; ``module`` may be another program with the same command line."""
    running = Daemon(address or free_address(), flags, module, variables)
    try:
        running.start()
        yield running
    finally:
        running.kill()
