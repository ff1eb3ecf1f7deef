"""What all tests share: their order, how Hypothesis runs, and that nothing of a run is left when it ends."""

import gc
import logging
import os
import shutil
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

from lcp_gateway.accounts.shared import outage
from lcp_gateway.http.gateway import api_limits
from lcp_gateway.http.openai import charges
from lcp_gateway.store.database import engines, leader, postgres, sqlite
from lcp_gateway.store.journal.writer import JournalLimits, JournalWriter
from lcp_gateway.upstreams.openai import adapter as openai_adapter
from lcp_gateway.upstreams.openai import input_tokens
from tests.support.forked import close_template

# What one process has compiled, tests included, the many others need not compile again, whatever the environment says.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

# The machines that run this are shared: how long an example takes says nothing.
settings.register_profile(
    "quick",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    max_examples=30,
    # In CI the same examples every time: a run that fails can be repeated.
    derandomize=bool(os.environ.get("CI")),
)
settings.register_profile("thorough", settings.get_profile("quick"), max_examples=500, derandomize=False)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))

# All that is collected stays: the garbage collector is turned on once it has been, and leaves it alone.
gc.disable()

_MARK = "LCP_TEST_RUN"
_GONE_WITHIN_S = 60.0


class _NothingLeft:
    """Fails a run of which a process still runs, or a temporary file is still there, when all tests have ended."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        # Every process of the run carries the mark; the workers and all that they start inherit it.
        os.environ[_MARK] = self._mark
        # pytest's own folders stay where they are: those of a failed test are kept for a look.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())
        # Short, since sockets are made in it, and open to the users of the databases.
        self._folder = Path(tempfile.mkdtemp(prefix="t-"))
        self._folder.chmod(0o755)
        os.environ["TMPDIR"] = str(self._folder)
        tempfile.tempdir = None

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        close_template()
        processes = self._wait_for_processes()
        left = [f"process {process.pid}: {_command(process)}" for process in processes]
        left += [f"file {path}" for path in sorted(self._folder.iterdir())]
        for process in processes:
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        if left:
            report = session.config.pluginmanager.get_plugin("terminalreporter")
            report.write_sep("=", "left behind by the tests", red=True)
            for line in left:
                report.write_line(line)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def _wait_for_processes(self) -> list[psutil.Process]:
        deadline = time.monotonic() + _GONE_WITHIN_S
        while (left := self._processes()) and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def _processes(self) -> list[psutil.Process]:
        ours = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        return [p for p in psutil.process_iter() if p.pid not in ours and self._is_of_the_run(p)]

    def _is_of_the_run(self, process: psutil.Process) -> bool:
        try:
            running = process.status() != psutil.STATUS_ZOMBIE
            return running and process.environ().get(_MARK) == self._mark
        except psutil.Error:
            return False


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return "ended just now"


@pytest.fixture(scope="session", autouse=True)
def _patient_databases() -> Iterator[None]:
    """Give databases, Redis and nodes a minute where a test says nothing else: on a busy machine each can take seconds."""
    with pytest.MonkeyPatch.context() as patched:
        for limit in ("busy_timeout_s", "write_timeout_s"):
            patched.setitem(engines.open_database.__kwdefaults__, limit, 60.0)
        patched.setitem(JournalWriter.__init__.__kwdefaults__, "limits", JournalLimits(wait_s=60.0, close_s=60.0))
        for kind in (postgres, sqlite):
            patched.setattr(kind, "_RESERVED_READ_S", 60.0)
        for module, limit in (
            (api_limits, "_READ_S"),
            (charges, "_BALANCE_S"),
            (leader, "_ANSWER_S"),
            (outage, "_ANSWER_S"),
            (postgres, "_QUICK_S"),
            (openai_adapter, "_CONNECT_TIMEOUT_S"),
            (input_tokens, "_CONNECT_TIMEOUT_S"),
        ):
            patched.setattr(module, limit, 60.0)
        yield


@pytest.fixture(autouse=True)
def _log_handlers_removed() -> Iterator[None]:
    """Remove the handlers that the gateway's logging put on the root logger.

    One that stays renders the errors of later tests with all their local variables, for seconds, on the loop of a node in a thread.
    """
    yield
    root = logging.getLogger()
    for handler in [each for each in root.handlers if type(each).__module__.startswith("lcp_gateway.")]:
        root.removeHandler(handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have each worker begin with a share of the modules that take long and wait a good part of it.

    xdist gives each an equal part of the list, one after the other, and one that has ended takes from the end of another's.
    """
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    slow: dict[Path, list[pytest.Item]] = {}
    quick = []
    for item in items:
        if item.get_closest_marker("slow"):
            slow.setdefault(item.path, []).append(item)
        else:
            quick.append(item)
    shares = [[item for module in list(slow.values())[first::workers] for item in module] for first in range(workers)]
    left, ordered = len(items), []
    for number, share in enumerate(shares):
        size = left // (workers - number)
        taken = max(0, size - len(share))
        ordered += share + quick[:taken]
        del quick[:taken]
        left = len(items) - len(ordered)
    items[:] = ordered + quick


@pytest.hookimpl(trylast=True)
def pytest_collection_finish() -> None:
    gc.freeze()
    gc.enable()


def pytest_configure(config: pytest.Config) -> None:
    # A worker of pytest-xdist is itself a process of the run.
    if not hasattr(config, "workerinput") and not config.option.collectonly:
        config.pluginmanager.register(_NothingLeft(), "nothing left")
