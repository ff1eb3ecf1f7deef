"""Processes are told apart by more than their number."""

import dataclasses
import os
import signal
import subprocess
import sys

import pytest

from lcp_gateway.cli.service import processes
from lcp_gateway.cli.service.processes import children_of, find_process, is_running, send, wait_gone

# With brackets and blanks in its name, as nothing keeps a program from having.
CHILD = "import sys; open('/proc/self/comm', 'w').write('a) (b c'); print('up', flush=True); sys.stdin.read()"


@pytest.fixture(params=["proc", "ps"])
def looking(request, monkeypatch):
    """With /proc, and without it, as on macOS."""
    if request.param == "ps":
        if not os.path.exists("/bin/ps"):  # noqa: PTH110
            pytest.skip("there is no ps")
        monkeypatch.setattr(processes, "_has_proc", lambda: False)


@pytest.fixture
def child():
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


@pytest.mark.usefixtures("looking")
def test_a_process_is_found_until_it_ends_and_a_zombie_is_none(child):
    found = find_process(child.pid)
    assert found == find_process(child.pid)
    assert found in children_of(find_process(os.getpid()))
    assert wait_gone([found], 0.1) == [found]
    child.kill()
    # Nobody has waited for it: its number is still taken.
    assert wait_gone([found], 5) == []
    os.kill(child.pid, 0)
    assert find_process(child.pid) is None
    assert not send(found, signal.SIGTERM)


@pytest.mark.usefixtures("looking")
def test_another_with_the_same_number_is_not_signalled(child):
    found = dataclasses.replace(find_process(child.pid), started="another time")
    assert not is_running(found)
    assert not send(found, signal.SIGKILL)
    assert children_of(found) == []
    assert child.poll() is None
    assert send(find_process(child.pid), signal.SIGKILL)
    assert child.wait(5) == -signal.SIGKILL


def test_a_system_without_handles_for_processes_does_too(child, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert send(find_process(child.pid), signal.SIGKILL)
    assert child.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
def test_what_is_no_number_of_a_process_is_nobody(pid):
    assert find_process(pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_process_of_another_user_is_nobody():
    other = subprocess.Popen(["sleep", "60"], user=65_534)
    try:
        assert find_process(other.pid) is None
    finally:
        other.kill()
        other.wait()
