"""curl, with the lines of the documentation; scripts depend on its exit code."""

import json
import subprocess

import pytest

from tests.support.documented import examples, pointed_at
from tests.support.gateway import clean_environment
from tests.support.tools import require_tool

BROKEN_OFF = 18
HTTP_ERROR = 22
ECHO = "This is the echo node. You said: hello"


@pytest.fixture
def curl(running):
    """Run a documented line, with optional replacements."""
    require_tool("curl")

    def run(number, changes=(), gateway=running):
        line = pointed_at(examples("curl", "sh")[number], gateway.base_url)
        for old, new in dict(changes).items():
            assert old in line
            line = line.replace(old, new)
        return subprocess.run(
            ["/bin/sh", "-c", line],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env=clean_environment({"no_proxy": "127.0.0.1"}),
        )

    return run


def events(output: str) -> list[str]:
    return [line.removeprefix("data: ") for line in output.splitlines() if line]


def test_the_first_line_prints_a_chat(curl, account):
    ran = curl(0)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["choices"][0]["message"]["content"] == ECHO
    assert account.accepts == 1


def test_the_second_line_streams_a_chat(curl, account):
    ran = curl(1)
    assert ran.returncode == 0, ran.stderr
    *chunks, done = events(ran.stdout)
    assert done == "[DONE]"
    deltas = [json.loads(chunk)["choices"][0]["delta"] for chunk in chunks]
    assert "".join(delta.get("content", "") for delta in deltas) == ECHO
    assert account.accepts == 1


def test_the_third_line_prints_a_response(curl, account):
    ran = curl(2)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["output"][0]["content"][0]["text"] == ECHO
    assert account.accepts == 1


@pytest.mark.parametrize("fault", ["stream-cut", "stream-cut-silently", "wrong-hash"])
def test_a_broken_stream_makes_curl_fail(curl, account, fault):
    ran = curl(1, {"echo-1": f"fault/{fault}"})
    assert ran.returncode == BROKEN_OFF
    assert "[DONE]" not in ran.stdout
    last = json.loads(events(ran.stdout)[-1])
    assert last["error"]["code"] == "undelivered"
    assert last["error"]["lcp"]["payment"] == "settled"
    assert account.accepts == 1


def test_an_error_makes_curl_fail_and_still_says_why(curl, account):
    ran = curl(0, {"echo-1": "no-such-model"})
    assert ran.returncode == HTTP_ERROR
    assert json.loads(ran.stdout)["error"]["code"] == "model_not_available"
    assert account.accepts == 0


def test_a_guarded_gateway_wants_the_documented_header(curl, guarded, api_key):
    assert curl(0, gateway=guarded).returncode == HTTP_ERROR
    header = {"curl -sS": f'curl -sS -H "Authorization: Bearer {api_key}"'}
    ran = curl(0, header, guarded)
    assert ran.returncode == 0, ran.stdout


def test_headers_are_shown_with_i(curl):
    ran = curl(0, {"curl -sS": "curl -sSi"})
    head, _, body = ran.stdout.partition("\n\n")
    lines = head.lower().splitlines()
    assert "x-lcp-payment: settled" in lines
    for name in ("x-request-id", "openai-processing-ms", "x-lcp-price-msat", "x-lcp-job-id"):
        assert any(line.startswith(f"{name}: ") for line in lines), name
    assert json.loads(body)["object"] == "chat.completion"
