"""The bench of storing runs, and what it prints is what it is there to show."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_streams_are_stored_within_the_budget_and_compared_with_others():
    options = ["--streams", "100", "--clients", "4", "--seconds", "0.4", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "bench.stored", *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    stored = re.search(r"([\d,]+) streams of 100 KiB stored, 0 errors", done.stdout)
    assert stored is not None and int(stored[1].replace(",", "")) >= 100
    newest = re.search(r"of the newest (\d+): (\d+) are there", done.stdout)
    assert newest is not None and newest[1] == newest[2] == "16"
    assert done.stdout.count("store off  store on  on/off") == 2
    assert done.stdout.count("errors: 0") == 2
