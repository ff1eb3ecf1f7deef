"""The examples of README.md have the documented results."""

import re
import subprocess
import sys

import pytest

from tests.support.gateway import clean_environment, gateway
from tests.support.promql import ROOT

PAGE = (ROOT / "README.md").read_text()
BASE_URL = "http://127.0.0.1:8080"


@pytest.fixture(scope="module")
def base_url():
    with gateway() as running:
        yield running.base_url


def run(*command, base_url=None, example=""):
    done = subprocess.run(
        [*command, example.replace(BASE_URL, base_url or BASE_URL)],
        env=clean_environment({}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_curl_line_buys_an_answer_and_shows_the_payment(base_url):
    (example,) = [block for block in blocks("sh") if block.startswith("curl")]
    shown = run("bash", "-c", base_url=base_url, example=example)
    for header in ("X-Lcp-Payment: settled", "X-Lcp-Price-Msat", "X-Lcp-Peer-Id", "X-Lcp-Job-Id"):
        assert header in shown
    assert "Say hello." in shown


def test_the_five_lines_of_python_print_an_answer(base_url):
    (example,) = blocks("python")
    assert len(example.strip().splitlines()) <= 6
    assert "Say hello." in run(sys.executable, "-c", base_url=base_url, example=example)
