"""The examples of docs/accounts.md have the documented results, one after the other as a reader runs them."""

import re
import shlex
import subprocess
import sys

import pytest

from tests.support.gateway import clean_environment, gateway
from tests.support.ports import free_address
from tests.support.promql import ROOT

PAGE = (ROOT / "docs" / "accounts.md").read_text()
SERVE, *OTHERS = re.findall(r"^```sh\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)

WAIT_FOR_CREDIT = """
until [[ $(curl -sS $GATEWAY/api/wallet -H "$ALICE") == *'"balance_msat":10000'* ]]; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """The output of all examples, against a gateway that is started as in the first one."""
    node = free_address()
    settings = dict(re.findall(r"(LCP_GATEWAY_\w+)=(\S+)", SERVE))
    settings["LCP_GATEWAY_NODE_LISTEN"] = node
    with gateway(env=settings) as running:
        script = "\n".join(OTHERS).replace("http://127.0.0.1:8080", running.base_url).replace("127.0.0.1:50051", node)
        # Independent of the environment of the tests.
        python = shlex.quote(sys.executable)
        script = re.sub(r"\.venv/bin/lcp-gateway", f"{python} -m lcp_gateway", script)
        # A second is enough for a reader's payment to be credited, unless the machine is busy.
        assert script.count("\nsleep 1\n") == 1
        script = script.replace("\nsleep 1\n", WAIT_FOR_CREDIT)
        script = re.sub(r"(?<!/)\.venv/bin/python", python, script)
        home = tmp_path_factory.mktemp("home")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", script],
            cwd=ROOT,
            env=clean_environment({"HOME": str(home), "XDG_STATE_HOME": str(home)}),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        yield done.stdout


def test_the_customer_has_what_it_paid_in(printed):
    assert "no real money moved" in printed
    assert '{"object":"lcp.wallet","balance_msat":10000,"held_msat":0,"available_msat":10000}' in printed


def test_what_is_charged_is_what_the_page_says(printed):
    for header in ("X-Lcp-Price-Msat", "X-Lcp-Charged-Msat", "X-Lcp-Balance-Msat"):
        (shown,) = re.findall(rf"^{header}: (\d+)$", PAGE, re.MULTILINE)
        assert f"{header}: {shown}" in printed


def test_the_key_with_limits_has_them(printed):
    assert '"models":["echo-mini"]' in printed
    assert '"requests_per_minute":2' in printed and '"budget_day_msat":100000' in printed


def test_a_client_that_paid_with_l402_is_served_and_charged(printed):
    assert printed.count("HTTP/1.1 200 OK") == 2
    # The hold becomes a charge some milliseconds after the answer: what can be spent is the same before and after.
    assert '"available_msat":98236}' in printed


def test_the_books_agree_in_the_end(printed):
    assert "adj_goodwill-1" in printed
    assert '"ok":true,"problems":[]' in printed
