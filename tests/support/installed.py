"""The package as users get it: built, installed into an environment of its own, and run from there."""

import http.client
import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.gateway import PATIENT, clean_environment
from tests.support.promql import ROOT

TIMEOUT_S = 240
_LISTENING = re.compile(rb"listening on http://\S+?:(\d+) ")


def uv(*arguments: object, cwd: Path = ROOT) -> str:
    """Run uv, which the set-up installs beside Python, and return its output."""
    beside = Path(sys.executable).parent / "uv"
    program = str(beside) if beside.exists() else shutil.which("uv")
    if program is None:
        pytest.skip("uv is not here")
    done = subprocess.run(
        [program, "--quiet", *map(str, arguments)],
        cwd=cwd,
        env=clean_environment({"UV_PYTHON_DOWNLOADS": "never"}),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Installed:
    """An environment with the package installed, and a folder for the program's files."""

    environment: Path
    home: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin" / "python"

    @property
    def program(self) -> Path:
        return self.environment / "bin" / "lcp-gateway"

    def settings(self, extra: Mapping[str, str]) -> dict[str, str]:
        own = {
            "XDG_CONFIG_HOME": str(self.home),
            "XDG_STATE_HOME": str(self.home),
            "LCP_GATEWAY_HTTP_ADDR": "127.0.0.1:0",
        }
        return clean_environment(own | dict(extra))

    def run(self, *command: object, env: Mapping[str, str] | None = None):
        """Run a command to its end, away from the checkout, so that the checkout is not imported."""
        return subprocess.run(
            [*map(str, command)],
            cwd=self.home,
            env=self.settings(env or {}),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )

    @contextmanager
    def serving(self, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
        """Run `lcp-gateway serve` while the block lasts; return the process and its port."""
        process = subprocess.Popen(
            [str(self.program), "serve", *arguments],
            cwd=self.home,
            env=self.settings(PATIENT),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        killer = threading.Timer(TIMEOUT_S, process.kill)
        killer.start()
        try:
            found = None
            while not found and (line := process.stdout.readline()):
                found = _LISTENING.search(line)
            assert found, f"the gateway ended with {process.wait(60)}"
            yield process, int(found[1])
        finally:
            killer.cancel()
            process.kill()
            process.wait(60)
            process.stdout.close()


def post_json(port: int, path: str, document: object) -> tuple[int, dict]:
    """Send JSON as any client would; return the status and the answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        headers = {"content-type": "application/json"}
        connection.request("POST", path, json.dumps(document), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()
