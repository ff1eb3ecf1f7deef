"""Tab completion of commands, flags and values in a real bash, without loading heavy modules."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cases import each_case

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 120
# Typer itself loads pydantic.
HEAVY = {"sqlalchemy", "grpc", "aiohttp", "alembic", "rich", "google.protobuf"}


def asked(python, **environment):
    return subprocess.run(
        [sys.executable, "-c", python],
        env={**os.environ, "_LCP_GATEWAY_COMPLETE": "complete_bash", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=True,
    )


@pytest.fixture(scope="module")
def completed(tmp_path_factory):
    """Return bash's completions of a line."""
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    folder = tmp_path_factory.mktemp("bin")
    program = folder / "lcp-gateway"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m lcp_gateway "$@"\n')
    program.chmod(0o755)
    script, drive = folder / "completion.sh", folder / "drive.sh"
    script.write_text(subprocess.check_output([program, "completion", "bash"], text=True, cwd=ROOT, timeout=TIMEOUT_S))
    drive.write_text(
        f". {script}\n"
        'COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
        "function=$(complete -p lcp-gateway | sed 's/.*-F \\([^ ]*\\).*/\\1/')\n"
        '"$function" "$1" "${!#}" ""\n'
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )

    def complete(*words):
        done = subprocess.run(
            ["bash", "--norc", str(drive), "lcp-gateway", *words],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
        )
        assert not done.stderr
        return done.stdout.split()

    return complete


@each_case(
    "words, expected",
    [
        (["do"], ["doctor"]),
        (["purchases", "ex"], ["export"]),
        (["config", ""], ["show", "check", "generate"]),
        (["serve", "--embed"], ["--embedded"]),
        (["purchases", "list", "--state", "unk"], ["unknown"]),
        (["purchases", "export", "--format", ""], ["csv", "jsonl"]),
        (["wallet", "topup", "äö", "--mem"], ["--memo"]),
        (["--vers"], ["--version"]),
        # Without a command the program serves, and takes the flags of ``serve``.
        (["--embed"], ["--embedded"]),
        (["--log-level", "debug", "--prefl"], ["--preflight", "--preflight-timeout-s"]),
        # No completions of the program: bash falls back to file names.
        (["config", "check", "/et"], []),
        (["serve", "--config", "/et"], []),
    ],
)
def test_bash_completes(completed, words, expected):
    assert sorted(completed(*words)) == sorted(expected)


def test_every_command_is_offered(completed):
    from lcp_gateway.cli.program import _COMMAND_MODULES

    assert set(completed("")) == set(_COMMAND_MODULES)


def test_nothing_heavy_is_loaded_for_a_name():
    done = asked(
        "import sys\nfrom lcp_gateway.cli import main\ncode = main([])\n"
        "sys.stderr.write(' '.join(sys.modules))\nsys.exit(code)",
        COMP_WORDS="lcp-gateway s",
        COMP_CWORD="1",
    )
    assert "serve" in done.stdout.split()
    assert not HEAVY & set(done.stderr.split())


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"COMP_WORDS": "lcp-gateway", "COMP_CWORD": "x"},
        {"COMP_WORDS": "lcp-gateway wallet show \udcff --", "COMP_CWORD": "4"},
        {"_LCP_GATEWAY_COMPLETE": "nonsense"},
        {"_LCP_GATEWAY_COMPLETE": "complete_tcsh"},
    ],
)
def test_an_error_leaves_no_traceback_at_the_prompt(environment):
    python = "import sys\nfrom lcp_gateway.cli import main\nassert main([]) in {0, 1}"
    assert "Traceback" not in asked(python, **environment).stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_takes_its_script(run, shell):
    outcome = run("completion", shell)
    assert outcome.code == 0 and "_LCP_GATEWAY_COMPLETE" in outcome.out
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    checked = subprocess.run([shell, "-n"], input=outcome.out, text=True, timeout=TIMEOUT_S, check=False)
    assert checked.returncode == 0


def test_the_shell_in_use_need_not_be_named(run, monkeypatch):
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert run("completion").out == run("completion", "fish").out
    for unknown in ("/bin/tcsh", ""):
        monkeypatch.setenv("SHELL", unknown)
        outcome = run("completion")
        assert outcome.code == 2 and "bash, zsh, fish" in outcome.err
