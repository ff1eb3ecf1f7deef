"""The `llm` command line, with a folder of its own and the model file of the documentation."""

import subprocess
import sys

import pytest

from tests.support.documented import examples, pointed_at
from tests.support.gateway import clean_environment

TIMEOUT_S = 60


@pytest.fixture
def llm(running, tmp_path):
    """Run `llm` with the documented model file; other models may be put in the place of echo-1."""

    def run(*arguments, model="echo-1"):
        [models] = examples("llm", "yaml")
        models = pointed_at(models, running.base_url).replace("echo-1", model)
        (tmp_path / "extra-openai-models.yaml").write_text(models)
        return subprocess.run(
            [sys.executable, "-m", "llm", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            cwd=tmp_path,
            env=clean_environment({"LLM_USER_PATH": str(tmp_path)}),
        )

    return run


def test_the_documented_lines_are_the_ones_that_are_run_here():
    [lines] = examples("llm", "sh")
    assert lines.splitlines() == ['llm -m lcp "hello"', 'llm -m lcp --no-stream "hello"']


@pytest.mark.parametrize("options", [(), ("--no-stream",)], ids=["streamed", "whole"])
def test_a_prompt_is_answered_and_bought_once(llm, running, account, options):
    before = len(running.json_logs())
    ran = llm("-m", "lcp", *options, "hello")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "This is the echo node. You said: hello\n"
    assert account.accepts == account.payments == 1
    jobs = [line for line in running.json_logs()[before:] if "job_id" in line]
    assert [job["stream"] for job in jobs] == [not options]


def test_a_cut_stream_is_an_error(llm, account):
    ran = llm("-m", "lcp", "hello", model="fault/stream-cut")
    assert ran.returncode != 0
    assert "broke off" in ran.stderr
    assert account.accepts == 1
