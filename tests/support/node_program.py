"""Runs `lcp-gateway node --lnd` as its own process."""

import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import START_TIMEOUT_S
from tests.support.forked import start_module
from tests.support.gateway import clean_environment
from tests.support.ports import free_address

SELLER_TOML = """
[[sell.models]]
name = "echo-1"
input_msat_per_mtok = 2000000
output_msat_per_mtok = 14000000

[[sell.backends]]
kind = "echo"
"""


def lnd_flags(lnd) -> tuple[str, ...]:
    """The flags that lead to a stand-in lnd."""
    address = lnd.address
    return ("--lnd", address.target, "--tls-cert", str(address.tls_cert), "--macaroon", str(address.macaroon))


class NodeProgram:
    """A node process; ``log`` is what it wrote to standard error."""

    def __init__(self, *flags: str, env: Mapping[str, str]) -> None:
        self.address = free_address()
        self.log: list[str] = []
        self.process = start_module(
            "lcp_gateway",
            *("node", "--listen", self.address, *flags),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(env),
            text=True,
        )
        self._reader = threading.Thread(target=lambda: self.log.extend(self.process.stderr), daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> str:
        late = threading.Timer(START_TIMEOUT_S, self.process.kill)
        late.start()
        try:
            line = self.process.stdout.readline()
        finally:
            late.cancel()
        assert "node ready on" in line, "".join(self.log)
        return line

    def end(self) -> int:
        """End it with SIGTERM; return its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        code = self.process.wait(60)
        self._reader.join(60)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@contextmanager
def node_program(lnd, folder: Path, *flags: str, config: str = "", **variables: str) -> Iterator[NodeProgram]:
    """Run a node over a stand-in lnd for the block, with its files in a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    named = ()
    if config:
        (folder / "node.toml").write_text(config)
        named = ("--config", str(folder / "node.toml"))
    env = {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), **variables}
    running = NodeProgram(*lnd_flags(lnd), *named, *flags, env=env)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.end()
