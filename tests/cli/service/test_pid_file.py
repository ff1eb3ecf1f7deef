"""The PID file: written atomically, private, and trusted only while its process is the one it was written for."""

import dataclasses
import os
import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.cli.service.pid_file import Condition, InstanceRecord, read_pid_file, remove_pid_file, write_pid_file
from lcp_gateway.cli.service.processes import Process, find_process


def record(process=None):
    return InstanceRecord(
        process=process or find_process(os.getpid()),
        address="127.0.0.1:1",
        url="http://127.0.0.1:1",
        version="1",
        since=datetime.now(UTC),
        log_file=Path("/x/ü.log"),
        folder=Path("/x"),
        config=None,
        flags={"http_addr": "127.0.0.1:1", "embedded": True},
        variables=("LCP_GATEWAY_API_KEYS",),
    )


def test_a_written_file_is_read_back_and_is_its_owners_alone(tmp_path):
    path, written = tmp_path / "x.pid", record()
    write_pid_file(path, written)
    found = read_pid_file(path)
    assert (found.condition, found.running, found.problem) == (Condition.RUNNING, written, "")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_none_is_none(tmp_path):
    assert read_pid_file(tmp_path / "x.pid") is None


@given(st.binary(max_size=300))
def test_whatever_stands_there_is_stale_and_no_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("run") / "x.pid"
    path.write_bytes(text)
    found = read_pid_file(path)
    assert (found.condition, found.record) == (Condition.STALE, None)
    assert found.problem


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_anything_but_a_regular_file_is_stale_and_not_waited_for(tmp_path, make):
    make(tmp_path / "x.pid")
    assert read_pid_file(tmp_path / "x.pid").condition is Condition.STALE


def test_a_process_that_is_gone_or_another_one_is_stale(tmp_path):
    path = tmp_path / "x.pid"
    for process in (Process(2**22 + 1, "any"), dataclasses.replace(find_process(os.getpid()), started="another")):
        write_pid_file(path, record(process))
        found = read_pid_file(path)
        assert found.condition is Condition.STALE
        assert found.running is None
        assert str(process.pid) in found.problem
        remove_pid_file(path, find_process(os.getpid()))
        assert path.exists()
        remove_pid_file(path, process)
        assert not path.exists()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "x.pid"
    write_pid_file(path, record())
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_pid_file(path, record())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
