"""``scripts/setup`` on a fresh clone: it prints each step as it begins, and nothing when there is nothing to do."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
STUB = "#!/bin/sh\n"


@pytest.fixture
def clone(tmp_path):
    """A checkout with a Python and a uv that do nothing."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPTS / "setup", tmp_path / "scripts" / "setup")
    tools = tmp_path / ".venv" / "bin"
    tools.mkdir(parents=True)
    version = (SCRIPTS / "setup").read_text().split("uv_version=")[1].split()[0]
    for name, text in (("python", ""), ("uv", f"[ $1 = --version ] && echo uv {version}\nexit 0\n")):
        (tools / name).write_text(STUB + text)
        (tools / name).chmod(0o755)
    for name in ("uv.lock", "pyproject.toml"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1, 1))
    return tmp_path


def set_up(clone) -> list[str]:
    ran = subprocess.run([clone / "scripts" / "setup"], capture_output=True, text=True, timeout=30, check=True)
    assert ran.stdout == ""
    return ran.stderr.splitlines()


def test_each_step_is_printed_before_it_runs(clone):
    said = set_up(clone)
    assert "a minute or two" in said[0]
    assert [line.split(":")[1].strip()[:6] for line in said[1:4]] == ["1 of 3", "2 of 3", "3 of 3"]
    assert said[-1] == "setup: done"


def test_a_second_run_prints_nothing(clone):
    set_up(clone)
    assert set_up(clone) == []
