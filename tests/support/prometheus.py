"""A real Prometheus on loopback, with the repository's own configuration pointed at a gateway of the test."""

import json
import math
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from tests.support.ports import free_address
from tests.support.promql import ALERTS, ROOT

CONFIG = ROOT / "deploy" / "prometheus" / "prometheus.yml"
START_TIMEOUT_S = 120.0


def executable() -> str:
    """Return the path of prometheus, or skip the test; where CI=true it must be installed."""
    found = shutil.which("prometheus")
    if found is None and os.environ.get("CI") != "true":
        pytest.skip("prometheus is not installed (Debian's package: prometheus)")
    assert found, "prometheus must be installed where CI=true"
    return found


@dataclass(frozen=True)
class RunningPrometheus:
    base_url: str

    def get(self, path: str, **parameters: str) -> dict:
        url = f"{self.base_url}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=60) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{parameters}: {error.read().decode()}") from error

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of every series, without those that are not a number."""
        found = self.get("/api/v1/query", query=expr)["result"]
        pairs = [(series["metric"], float(series["value"][1])) for series in found]
        return [(labels, value) for labels, value in pairs if not math.isnan(value)]

    def wait_for(self, expr: str, is_so: Callable[[list], bool], timeout_s: float = 120.0) -> list:
        """Query until the result is as it should be; a scrape that took too long leaves it empty until the next one."""
        deadline = time.monotonic() + timeout_s
        while not is_so(found := self.query(expr)):
            assert time.monotonic() < deadline, f"{expr}: {found}"
            time.sleep(0.1)
        return found

    def wait_for_value(self, expr: str, is_so: Callable[[float], bool]) -> float:
        """Query an expression of one series until its value is as it should be; return the value."""
        ((_, value),) = self.wait_for(expr, lambda found: len(found) == 1 and is_so(found[0][1]))
        return value


def configuration(*targets: str, key_file: Path | None = None) -> dict:
    """Return the repository's configuration, scraping ``targets`` every second.

    With ``key_file`` its commented authorization section is enabled.
    """
    text = CONFIG.read_text()
    if key_file is not None:
        for line in ("authorization:", "  type: Bearer", "  credentials_file: "):
            assert f"    # {line}" in text
            text = text.replace(f"    # {line}", f"    {line}")
        text = text.replace("/run/secrets/gateway-key", str(key_file))
    config = yaml.safe_load(text)
    config["global"] = dict.fromkeys(config["global"], "1s")
    config["rule_files"] = [str(ALERTS)]
    config["scrape_configs"] = [job for job in config["scrape_configs"] if job["job_name"] == "lcp-gateway"]
    config["scrape_configs"][0]["static_configs"] = [{"targets": [*targets]}]
    return config


@contextmanager
def prometheus(config: dict, folder: Path, *flags: str) -> Iterator[RunningPrometheus]:
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    address = free_address()
    log = folder / "prometheus.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                executable(),
                f"--config.file={path}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                *flags,
            ],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, "GOMAXPROCS": "1"},
        )
        try:
            running = RunningPrometheus(f"http://{address}")
            _wait_until_ready(running, process, log)
            yield running
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(60)


def _wait_until_ready(running: RunningPrometheus, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"{running.base_url}/-/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.05)
    raise AssertionError(f"prometheus did not become ready:\n{log.read_text()}")
