"""Writes to standard output and error never wait for the reader, and lost lines are counted."""

import io
import os
import pathlib
import socket
import subprocess
import sys
import threading
import time

import pytest

from lcp_gateway.telemetry.log_output import LineQueue, QueuedStream, writer_without_waiting
from tests.support.node_thread import eventually

PIPE_BYTES = 64 * 1024


@pytest.fixture
def pipe():
    """A pipe with a blocking write end, as standard error usually has."""
    ends = list(os.pipe())
    yield ends
    for descriptor in filter(None, ends):
        os.close(descriptor)


@pytest.fixture
def queue_before(pipe):
    """Make queues in front of the pipe; their threads end with the test."""
    made = []

    def make(write, **options):
        made.append(LineQueue(write, **options))
        return made[-1]

    yield make
    if pipe[0] is not None:
        # Ends a thread that is blocked on the reader.
        os.close(pipe[0])
        pipe[0] = None
    for lines in made:
        lines.close(5)


def read_all(descriptor, count):
    found = b""
    while len(found) < count:
        found += os.read(descriptor, 65536)
    return found


def test_lines_arrive_whole_and_in_order(pipe, queue_before):
    read, write = pipe
    lines = queue_before(write)
    said = [b"line %d\n" % number for number in range(1_000)]
    for line in said:
        lines.put(line)
    assert read_all(read, sum(map(len, said))) == b"".join(said)
    assert lines.lost == 0
    lines.close()


def test_a_reader_that_does_not_read_makes_no_writer_wait(pipe, queue_before):
    """Regression: after 95 requests the event loop was blocked in write(2), and SIGTERM had no effect."""
    _, write = pipe
    lines = queue_before(write, max_bytes=PIPE_BYTES)
    started = time.monotonic()
    for _ in range(10_000):
        lines.put(b"x" * 99 + b"\n")
    assert time.monotonic() - started < 60
    # The queue, the thread's batch and the pipe hold some lines: the rest is lost.
    assert 10_000 - 4 * PIPE_BYTES // 100 <= lines.lost < 10_000


def test_lost_lines_are_logged_once_lines_can_be_written(pipe, queue_before):
    read, write = pipe
    told = []
    lines = queue_before(write, max_bytes=PIPE_BYTES, on_lost=told.append)
    for _ in range(5_000):
        lines.put(b"x" * 99 + b"\n")
    lost = lines.lost
    assert lost > 0
    left = (5_000 - lost) * 100
    assert read_all(read, left) == (b"x" * 99 + b"\n") * (5_000 - lost)
    eventually(lambda: sum(told) == lost)
    lines.put(b"again\n")
    assert read_all(read, 6) == b"again\n"
    assert sum(told) == lost == lines.lost


@pytest.mark.parametrize("blocks", [True, False])
def test_a_line_longer_than_the_pipe_is_written_in_pieces(pipe, queue_before, blocks):
    read, write = pipe
    os.set_blocking(write, blocks)
    lines = queue_before(write)
    long_line = b"y" * (3 * PIPE_BYTES) + b"\n"
    lines.put(long_line)
    time.sleep(0.05)
    assert read_all(read, len(long_line)) == long_line


def test_the_end_is_not_waited_for_longer_than_asked(pipe, queue_before):
    _, write = pipe
    lines = queue_before(write)
    for _ in range(2_000):
        lines.put(b"x" * 99 + b"\n")
    started = time.monotonic()
    lines.close(timeout_s=0.2)
    assert time.monotonic() - started < 60


def test_what_is_queued_is_written_before_the_end(pipe, queue_before):
    read, write = pipe
    lines = queue_before(write)
    for number in range(500):
        lines.put(b"%d\n" % number)
    lines.close(60)
    assert os.read(read, PIPE_BYTES).splitlines()[-1] == b"499"


def test_lines_for_what_cannot_be_written_to_are_counted(pipe, queue_before):
    read, write = pipe
    os.close(read)
    pipe[0] = None
    lines = queue_before(write)
    lines.put(b"a\nb\n")
    eventually(lambda: lines.lost == 2)
    lines.put(b"c\n")
    eventually(lambda: lines.lost == 3)


def test_a_writer_that_interrupts_itself_does_not_lock_itself_out(pipe, queue_before):
    _, write = pipe
    lines = queue_before(write)
    with lines._guard:
        lines.put(b"from a signal handler\n")
    done = threading.Thread(target=lines.put, args=(b"from a thread\n",))
    done.start()
    done.join(60)
    assert not done.is_alive()


def test_a_queued_stream_is_a_stream(pipe, queue_before):
    read, write = pipe
    stream = QueuedStream(queue_before(write))
    print("hello", "wörld", file=stream, flush=True)
    stream.buffer.write(b"bytes\n")
    stream.write("\udc80\n")
    expected = "hello wörld\nbytes\n\\udc80\n".encode()
    assert read_all(read, len(expected)) == expected
    assert (stream.isatty(), stream.fileno(), stream.encoding) == (False, write, "utf-8")
    assert isinstance(stream, io.TextIOBase) and stream.writable()


@pytest.mark.parametrize("how", ["print", "warning", "c library", "child"])
def test_no_writer_of_the_process_is_stopped_by_a_pipe_that_is_full(how, tmp_path):
    write = {
        "print": "print('x' * 1000, file=sys.stderr)",
        "warning": "warnings.warn('x' * 1000)",
        "c library": "libc.dprintf(2, b'%s', b'x' * 1000)",
        "child": "subprocess.run(['sh', '-c', 'printf %01000d 0 >&2'], stderr=None)",
    }[how]
    program = (
        "import ctypes, subprocess, sys, warnings\n"
        "from lcp_gateway.telemetry.log_output import queued_standard_streams\n"
        "libc = ctypes.CDLL(None)\n"
        "warnings.simplefilter('always')\n"
        "with queued_standard_streams():\n"
        f"    for _ in range(200):\n        {write}\n"
        "open(sys.argv[1], 'w').close()\n"
    )
    read, error = os.pipe()
    done = tmp_path / "done"
    process = subprocess.Popen([sys.executable, "-c", program, done], stderr=error)
    os.close(error)
    try:
        process.wait(60)
        assert pathlib.Path(done).exists()
    finally:
        process.kill()
        process.wait(60)
        os.close(read)
        if pathlib.Path(done).exists():
            pathlib.Path(done).unlink()


def test_a_program_that_fails_says_so_before_it_ends():
    program = (
        "from lcp_gateway.telemetry.log_output import queued_standard_streams\n"
        "with queued_standard_streams():\n    print('hello')\n    raise RuntimeError('it broke')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=120, check=False, text=True)
    assert done.returncode == 1
    assert done.stdout == "hello\n"
    assert "RuntimeError: it broke" in done.stderr


def test_a_pipe_with_room_gets_its_line_at_once_without_a_thread(pipe, queue_before):
    """Waking a thread for every line costs more than writing the line."""
    read, write = pipe
    os.set_blocking(write, False)
    lines = queue_before(write, write_now=writer_without_waiting(write))
    before = threading.active_count()
    lines.put(b"at once\n")
    assert os.read(read, 100) == b"at once\n"
    assert threading.active_count() == before


def test_lines_keep_their_order_when_a_pipe_is_full_for_a_while(pipe, queue_before):
    read, write = pipe
    os.set_blocking(write, False)
    lines = queue_before(write, write_now=writer_without_waiting(write))
    said = [b"%06d " % number + b"x" * (number % 700) + b"\n" for number in range(1_000)]
    for line in said:
        lines.put(line)
    assert read_all(read, sum(map(len, said))) == b"".join(said)
    lines.put(b"and once more\n")
    assert read_all(read, 14) == b"and once more\n"
    assert lines.lost == 0


def test_lines_lost_at_a_full_pipe_are_reported_before_direct_writes_resume(pipe, queue_before):
    read, write = pipe
    os.set_blocking(write, False)
    told = []
    lines = queue_before(write, max_bytes=PIPE_BYTES, on_lost=told.append, write_now=writer_without_waiting(write))
    for _ in range(5_000):
        lines.put(b"x" * 99 + b"\n")
    lost = lines.lost
    assert lost > 0
    read_all(read, (5_000 - lost) * 100)
    lines.put(b"again\n")
    assert read_all(read, 6) == b"again\n"
    eventually(lambda: sum(told) == lost)


def test_a_socket_is_written_to_at_once_and_stays_as_it_was():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        lines = LineQueue(ours.fileno(), write_now=writer_without_waiting(ours.fileno()))
        lines.put(b"to the journal\n")
        assert theirs.recv(100) == b"to the journal\n"
        assert os.get_blocking(ours.fileno())
        said = b"z" * 499 + b"\n"
        for _ in range(1_000):
            lines.put(said)
        with theirs.makefile("rb") as reader:
            assert reader.read(1_000 * len(said)) == said * 1_000
        lines.close(5)


def test_a_pipe_that_blocks_and_a_file_are_left_to_the_thread(pipe, tmp_path):
    _, write = pipe
    assert writer_without_waiting(write) is None
    with (tmp_path / "log").open("wb") as file:
        assert writer_without_waiting(file.fileno()) is None
