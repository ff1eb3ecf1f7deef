"""A gateway whose configuration file is changed while it runs."""

import os
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.gateway import RunningGateway, gateway

RELOADED = "configuration reloaded"
NOT_RELOADED = "configuration not reloaded"


@dataclass
class Reloadable:
    """The process and its file."""

    running: RunningGateway
    file: Path

    @property
    def port(self) -> int:
        return self.running.port

    def outcomes(self) -> list[dict[str, Any]]:
        """Return the log lines with the result of each reload."""
        return [line for line in self.running.json_logs() if line["event"] in {RELOADED, NOT_RELOADED}]

    def hang_up(self) -> None:
        os.kill(self.running.pid, signal.SIGHUP)

    def read(self, text: str, timeout_s: float = 60.0) -> dict[str, Any]:
        """Reload the gateway with this configuration; return the log line with the result."""
        write(self.file, text)
        before = len(self.outcomes())
        self.hang_up()
        deadline = time.monotonic() + timeout_s
        while len(found := self.outcomes()) == before:
            assert time.monotonic() < deadline, self.running.logs
            time.sleep(0.01)
        return found[-1]

    def take(self, text: str) -> dict[str, Any]:
        """Reload the gateway with this configuration, which must be valid."""
        line = self.read(text)
        assert line["event"] == RELOADED, line
        return line


def write(file: Path, text: str) -> None:
    """Replace a file atomically, as editors do."""
    new = file.with_suffix(".new")
    new.write_text(text)
    new.chmod(0o600)
    new.replace(file)


@contextmanager
def reloadable(
    folder: Path,
    text: str = "",
    *,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    embedded: bool = True,
) -> Iterator[Reloadable]:
    """Run a gateway with a file of its own."""
    file = folder / "gateway.toml"
    write(file, text)
    with gateway(args=["--config", str(file), *args], env=env, embedded=embedded) as running:
        yield Reloadable(running, file)
