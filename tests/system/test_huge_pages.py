"""The two variables of the operations page put a gateway's heap on huge pages, where the kernel allows it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.gateway import clean_environment
from tests.support.huge_pages import documented

ENABLED = Path("/sys/kernel/mm/transparent_hugepage/enabled")
IS_ALLOWED = ENABLED.exists() and "[never]" not in ENABLED.read_text()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc" or not IS_ALLOWED, reason="huge pages are not to be had here")
@pytest.mark.parametrize("is_set", [True, False])
def test_a_gateway_asks_for_huge_pages_with_both_variables(is_set, tmp_path):
    # A process of its own: the variables have to be there before Python starts.
    folder = str(tmp_path)
    settings = {"XDG_CONFIG_HOME": folder, "XDG_STATE_HOME": folder, **(documented() if is_set else {})}
    command = [sys.executable, "-m", "lcp_gateway", "serve", "--embedded", "--http-addr", "127.0.0.1:0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=clean_environment(settings), text=True
    ) as process:
        try:
            assert any("listening on" in line for line in process.stdout), "it ended before it was ready"
            regions = Path(f"/proc/{process.pid}/smaps").read_text().splitlines()
        finally:
            process.terminate()
    asked = [line for line in regions if line.startswith("VmFlags:") and "hg" in line.split()]
    assert bool(asked) == is_set
