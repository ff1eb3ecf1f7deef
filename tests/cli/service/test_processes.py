"""Processes are identified by more than their PID."""

import dataclasses
import os
import signal
import subprocess
import sys

import psutil
import pytest

from lcp_gateway.cli.service.processes import children_of, find_process, is_running, send, wait_gone

# A program's name may contain brackets and blanks.
CHILD = "import sys; open('/proc/self/comm', 'w').write('a) (b c'); print('up', flush=True); sys.stdin.read()"


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_a_process_is_found_until_it_ends_and_a_zombie_is_none(child):
    found = find_process(child.pid)
    assert found == find_process(child.pid)
    assert found in children_of(find_process(os.getpid()))
    assert wait_gone([found], 0.1) == [found]
    child.kill()
    # Its parent has not waited for it: the PID is still in use.
    assert wait_gone([found], 5) == []
    os.kill(child.pid, 0)
    assert find_process(child.pid) is None
    assert not send(found, signal.SIGTERM)


def test_another_with_the_same_number_is_not_signalled(child):
    found = dataclasses.replace(find_process(child.pid), started="another time")
    assert not is_running(found)
    assert not send(found, signal.SIGKILL)
    assert children_of(found) == []
    assert child.poll() is None
    assert send(find_process(child.pid), signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL


@pytest.mark.skipif(not psutil.LINUX, reason="only Linux counts from the boot")
def test_a_process_stays_the_same_when_the_clock_is_set(child, monkeypatch):
    before = find_process(child.pid)
    booted = psutil.boot_time()
    monkeypatch.setattr(psutil._psplatform, "boot_time", lambda: booted - 3_600)
    assert find_process(child.pid) == before


def test_a_system_without_handles_for_processes_does_too(child, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    assert send(find_process(child.pid), signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**40])
def test_a_number_of_no_process_finds_none(pid):
    assert find_process(pid) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process as another user")
def test_a_process_of_another_user_is_not_found():
    other = subprocess.Popen(["sleep", "60"], user=65_534)
    try:
        assert find_process(other.pid) is None
    finally:
        other.kill()
        other.wait()
