"""The bench runs, and prints the lines that it is there to show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*options):
    done = subprocess.run(
        [sys.executable, "-m", "bench", *options], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def rows(printed, title):
    """Return the cells of the table below ``title``, its head first."""
    _, _, below = printed.partition(f"\n{title}\n")
    table, _, _ = below.partition("\n\n")
    return [re.split(r"\s{2,}", line.strip()) for line in table.splitlines()]


@pytest.mark.slow
def test_paced_streams_are_compared_with_the_daemon_itself():
    printed = run("--quick", "--only", "paced")
    head, row = rows(printed, "Paced streams (ms)")
    line = dict(zip(head, row, strict=True))
    assert (line["ms/token"], line["streams"], line["errors"]) == ("20", "16", "0")
    assert float(line["CPU us/token"]) > 0
    assert float(line["between p50 direct"]) > 0


@pytest.mark.slow
def test_the_floor_is_the_ruler():
    printed = run("--quick", "--only", "floor", "--lines", "tokens")
    head, *lines = rows(printed, "A token each 20 ms, 16 streams")
    assert [line[0] for line in lines] == ["floor", "gateway"]
    assert lines[0][head.index("to floor") - len(head)] == "1.00"
