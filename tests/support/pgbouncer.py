"""A real PgBouncer before a PostgreSQL of the tests: on loopback, with its defaults but for what a test changes."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.ports import free_port
from tests.support.postgres import as_user

PROGRAM = Path("/usr/sbin/pgbouncer")


@contextmanager
def pgbouncer(server, **settings: str) -> Iterator[int]:
    """Run a PgBouncer in front of a server; return its port."""
    if not PROGRAM.exists():
        assert os.environ.get("CI") != "true", "PgBouncer must be installed where CI=true"
        pytest.skip("PgBouncer is not installed (Debian's package: pgbouncer)")
    folder = Path(tempfile.mkdtemp(prefix="bouncer-"))
    try:
        port = free_port()
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": str(port),
            "unix_socket_dir": "",
            "auth_type": "any",
            "logfile": str(folder / "log"),
            **settings,
        }
        backend = f"* = host=127.0.0.1 port={server.port} user={server.user}\n"
        text = "\n".join(f"{name} = {value}" for name, value in lines.items())
        (folder / "pgbouncer.ini").write_text(f"[databases]\n{backend}[pgbouncer]\n{text}\n")
        if os.getuid() == 0:
            shutil.chown(folder, server.user)
        process = subprocess.Popen(
            # It refuses to run as root.
            [*as_user(server.user), PROGRAM, "-q", folder / "pgbouncer.ini"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
        )
        try:
            _wait(port, process, folder / "log")
            yield port
        finally:
            process.kill()
            process.wait(60)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def through(url: str, port: int) -> str:
    """Return the URL with the pooler's address in place of the server's."""
    before, _, database = url.rpartition("/")
    return f"{before.rpartition(':')[0]}:{port}/{database}"


def _wait(port: int, process: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text() if log.exists() else "it did not start"
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(log.read_text())
