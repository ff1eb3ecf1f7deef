"""Tables on a terminal of 100 columns: no line is wider, and commands accept the shortened ids."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pytest

from lcp_gateway.cli.output import shorten_ids
from tests.support.gateway import gateway
from tests.support.written_purchases import Bought, written

COLUMNS = 100
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def on_terminal(*arguments) -> list[str]:
    """Run a command in a terminal of 100 columns; return the lines that it shows."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in {"COLUMNS", "LINES"}}
    with subprocess.Popen(
        [sys.executable, "-m", "lcp_gateway", *arguments],
        stdout=its,
        stderr=subprocess.DEVNULL,
        env={**environment, "TERM": "xterm"},
    ) as process:
        os.close(its)
        shown = b""
        try:
            while block := os.read(ours, 65_536):
                shown += block
        except OSError:
            # The other end of the terminal is closed.
            pass
        os.close(ours)
    assert process.returncode == 0, shown
    return ESCAPES.sub("", shown.decode()).splitlines()


def test_the_tables_of_a_running_gateway_fit():
    with gateway() as running:
        where = ("--port", str(running.port))
        models, route = on_terminal("models", *where), on_terminal("route", *where)
    for lines in (models, route):
        assert max(map(len, lines)) <= COLUMNS
        # No id is folded over many lines.
        assert all(len(line.split()) > 2 for line in lines[-3:])
    assert any(re.search(r"\b[0-9a-f]{8}…", line) for line in models)
    assert "source" not in models[0] and "provider" in models[0]


def test_purchases_fit_and_are_found_by_their_short_ids(tmp_path, run):
    one = Bought(1)
    written(tmp_path / "state" / "lcp-gateway" / "journal.db", one, Bought(2))
    lines = on_terminal("purchases", "list")
    assert max(map(len, lines)) <= COLUMNS
    short = one.job_id.hex()[:8] + "…"
    assert any(line.rstrip().endswith(short) for line in lines)
    for beginning in (short, short[:-1], one.job_id.hex().upper()):
        assert one.job_id.hex() in run("purchases", "show", beginning).out
        assert one.job_id.hex() in run("receipt", "show", beginning).out
    assert run("purchases", "show", "0" * 8).code == 1
    assert run("purchases", "show", "abc").code == 2
    # Commands that change data require the whole id.
    assert run("purchases", "resolve", short, "settled", "--why", "x", "--yes").code == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("ab" * 33, "abababab…"),
        (f"x {'cd' * 32} y", "x cdcdcdcd… y"),
        ("key_0123456789ab", "key_0123456789ab"),
        ("deadbeef", "deadbeef"),
    ],
)
def test_only_long_ids_are_shortened(text, shown):
    assert shorten_ids(text) == shown
