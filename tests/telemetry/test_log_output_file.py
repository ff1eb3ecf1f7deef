"""The log in a file: rotated without losing a line, reopened when it was moved or deleted, readable by its owner only."""

import os
import stat
import threading
import time

import pytest

from lcp_gateway.telemetry.log_output import LogFile, open_log, rotated
from tests.support.node_thread import eventually


@pytest.fixture
def stream(tmp_path):
    """A descriptor of a log file, as standard error is in the background."""
    handle = open_log(tmp_path / "x.log")
    yield handle
    os.close(handle)


def rotated_log(tmp_path, stream, *, max_bytes, keep):
    return LogFile(tmp_path / "x.log", max_bytes=max_bytes, keep=keep, streams=[stream])


def test_it_is_its_owners_alone_and_appended_to(tmp_path, stream):
    os.write(stream, b"one\n")
    again = open_log(tmp_path / "x.log")
    os.write(again, b"two\n")
    os.close(again)
    assert (tmp_path / "x.log").read_bytes() == b"one\ntwo\n"
    assert stat.S_IMODE((tmp_path / "x.log").stat().st_mode) == 0o600


def test_what_is_no_file_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    os.mkfifo(tmp_path / "pipe")
    for name in ("folder", "link", "pipe"):
        with pytest.raises(OSError, match=name):
            open_log(tmp_path / name)
    with pytest.raises(OSError, match="not a regular file"):
        open_log("/dev/null")
    assert not (tmp_path / "elsewhere").exists()


def test_it_is_rotated_at_its_size_and_so_many_are_kept(tmp_path, stream):
    log = rotated_log(tmp_path, stream, max_bytes=10, keep=2)
    for number in range(5):
        os.write(stream, f"line number {number}\n".encode())
        log.rotate_if_due()
    assert (tmp_path / "x.log").read_bytes() == b""
    assert [path.name for path in rotated(tmp_path / "x.log")] == ["x.log.1", "x.log.2"]
    assert (tmp_path / "x.log.1").read_bytes() == b"line number 4\n"
    assert (tmp_path / "x.log.2").read_bytes() == b"line number 3\n"


def test_a_smaller_number_of_kept_ones_removes_the_rest(tmp_path, stream):
    for number in (1, 2, 3, 11):
        (tmp_path / f"x.log.{number}").write_text(f"old {number}\n")
    for other in ("x.log.bak", "x.log.01", "y.log.1"):
        (tmp_path / other).write_text("not ours")
    os.write(stream, b"now\n")
    rotated_log(tmp_path, stream, max_bytes=1, keep=2).rotate_if_due()
    assert [path.read_text() for path in rotated(tmp_path / "x.log")] == ["now\n", "old 1\n"]
    assert {"x.log.bak", "x.log.01", "y.log.1"} <= {path.name for path in tmp_path.iterdir()}


def test_none_may_be_kept(tmp_path, stream):
    os.write(stream, b"now\n")
    rotated_log(tmp_path, stream, max_bytes=1, keep=0).rotate_if_due()
    assert [path.name for path in tmp_path.iterdir()] == ["x.log"]
    assert (tmp_path / "x.log").stat().st_size == 0


def test_without_a_size_it_grows(tmp_path, stream):
    os.write(stream, b"x" * 100_000)
    rotated_log(tmp_path, stream, max_bytes=0, keep=2).rotate_if_due()
    assert rotated(tmp_path / "x.log") == []


def test_a_log_file_that_was_removed_is_created_again(tmp_path, stream):
    log = rotated_log(tmp_path, stream, max_bytes=1_000, keep=2)
    (tmp_path / "x.log").rename(tmp_path / "taken")
    log.rotate_if_due()
    os.write(stream, b"here\n")
    assert (tmp_path / "x.log").read_bytes() == b"here\n"
    (tmp_path / "x.log").unlink()
    log.rotate_if_due()
    os.write(stream, b"again\n")
    assert (tmp_path / "x.log").read_bytes() == b"again\n"


def test_no_line_is_lost_while_the_log_is_rotated(tmp_path, stream):
    writers, lines = 4, 2_000

    def write(writer):
        for number in range(lines):
            os.write(stream, f"{writer} {number}\n".encode())

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    log = LogFile(tmp_path / "x.log", max_bytes=1_000, keep=100_000, streams=[stream], interval_s=0.001)
    with log:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        eventually((tmp_path / "x.log.1").exists)
    files = [*reversed(rotated(tmp_path / "x.log")), tmp_path / "x.log"]
    found = "".join(path.read_text() for path in files).splitlines()
    assert len(files) > 1
    for writer in range(writers):
        mine = [line for line in found if line.startswith(f"{writer} ")]
        assert mine == [f"{writer} {number}" for number in range(lines)]


def test_errors_end_neither_the_thread_nor_the_lines(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    stream = open_log(folder / "x.log")
    try:
        with LogFile(folder / "x.log", max_bytes=5, keep=1, streams=[stream], interval_s=0.01):
            folder.rename(tmp_path / "moved")
            os.write(stream, b"still\n")
            time.sleep(0.1)
            (tmp_path / "moved").rename(folder)
            deadline = time.monotonic() + 60
            while not (folder / "x.log.1").exists():
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert (folder / "x.log.1").read_bytes() == b"still\n"
    finally:
        os.close(stream)
