"""``route``: which provider would get a request, and why. It buys nothing, and shows nothing of the request."""

import io
import json
import sys

import pytest

from tests.cli.node_tables import config_file, table
from tests.support.gateway import gateway
from tests.support.http_node import HttpNodeThread, http_nodes

SECRET = "do-not-print"
KEY = "sk-do-not-print-either"
CODER = "Qwen2.5-Coder-14B"


@pytest.fixture(scope="module")
def market():
    nodes = (HttpNodeThread("box", (CODER, "all-minilm")), HttpNodeThread("dear", (CODER, "llava-7b")))
    with http_nodes(*nodes):
        yield nodes


@pytest.fixture(scope="module")
def tables(market):
    box, dear = market
    return (
        f'api_keys = ["{KEY}"]\nembedded = true\n',
        '[models."Qwen2.5-Coder-14B"]\naliases = ["gpt-4o-mini"]\n',
        table("box", box.base_url, price_per_request_msat=500),
        table("dear", dear.base_url, price_per_request_msat=50_000),
    )


@pytest.fixture
def config(tables, tmp_path):
    return config_file(tmp_path, *tables)


@pytest.fixture(scope="module")
def running(tables, tmp_path_factory):
    path = config_file(tmp_path_factory.mktemp("running"), *tables)
    with gateway(args=["--config", path]) as process:
        yield process


@pytest.fixture
def at(node):
    """Use the session's node instead of an embedded one, and no gateway."""
    return ("--no-embedded", "--lcpd-grpc-addr", node.address, "--http-addr", "127.0.0.1:0")


@pytest.fixture
def body(monkeypatch):
    """Put a request on standard input."""

    def give(**fields):
        messages = [{"role": "user", "content": SECRET}]
        text = json.dumps({"model": "auto", "messages": messages} | fields).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text)))

    return give


def pairs(outcome):
    assert outcome.code == 0, outcome.err
    return dict(line.split(None, 1) for line in outcome.out.splitlines() if line.strip())


def document(outcome):
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_without_a_body_a_short_chat_is_explained(run, at, config, market):
    outcome = run("route", *at, "--config", config)
    shown = pairs(outcome)
    assert (shown["endpoint"], shown["model"]) == ("chat", "auto")
    assert shown["weights"].startswith("availability 0.15, speed 0.30, delivery 0.25")
    assert shown["reason"].startswith("best score of ")
    heading, *rows = [line for line in outcome.out.splitlines() if line.startswith((" ", "*"))]
    assert heading.split() == [
        "provider", "model", "score", "availability", "speed", "delivery", "price", "fit",
        "price_msat", "first_byte", "tokens/s",
    ]  # fmt: skip
    assert [row.split()[:3] for row in rows if row.startswith("*")] == [["*", "node:box", CODER]]
    assert "nothing measured yet" in outcome.err
    assert not any(node.calls() for node in market)


def test_the_needs_of_a_request_are_shown_and_none_of_its_text(run, at, config, body):
    image = {"type": "image_url", "image_url": {"url": "https://example.com/" + SECRET}}
    body(messages=[{"role": "user", "content": [image]}], max_tokens=1000)
    outcome = run("route", "-", *at, "--config", config)
    shown = pairs(outcome)
    assert shown["needs"].startswith("vision, room for 2")
    assert "llava-7b" in outcome.out
    assert CODER not in outcome.out
    assert SECRET not in outcome.out + outcome.err


def test_the_model_can_be_replaced_or_put_in(run, at, config, tmp_path, body):
    body()
    shown = pairs(run("route", "-", "--model", "auto:cheap+code", *at, "--config", config))
    assert shown["model"] == "auto:cheap+code"
    assert "code" in shown["needs"]
    path = tmp_path / "body.json"
    path.write_text('{"input": "Hello", "dimensions": 8}')
    outcome = run("route", str(path), "--model", "all-minilm", *at, "--config", config, "--json")
    found = document(outcome)
    assert found["endpoint"] == "openai.embeddings.v1"
    assert found["chosen"]["provider"] == "node:box"


def test_a_named_model_shows_all_its_providers_and_the_meaning_of_an_alias(run, at, config):
    outcome = run("route", "--model", "gpt-4o-mini", *at, "--config", config)
    shown = pairs(outcome)
    assert shown["model"] == f"gpt-4o-mini, which is {CODER} here"
    assert "weights" not in shown
    rows = [line.split() for line in outcome.out.splitlines() if "node:" in line]
    assert [row[-11:-9] for row in rows] == [["node:box", CODER], ["node:dear", CODER]]
    assert shown["reason"].startswith("the model was named")


def test_an_endpoint_can_be_chosen(run, at, config):
    for endpoint, model in (("embeddings", "all-minilm"), ("completions", CODER)):
        found = document(run("route", "--endpoint", endpoint, *at, "--config", config, "--json"))
        assert found["chosen"]["model"] == model


def test_a_running_gateway_explains_it_and_spends_nothing(run, running, config, body, market):
    where = ("--http-addr", f"127.0.0.1:{running.port}", "--config", config)
    body(tools=[{"type": "function"}])
    outcome = run("route", "-", *where)
    shown = pairs(outcome)
    assert "tools" in shown["needs"]
    assert f"as measured by the gateway at {running.base_url}" in outcome.err
    assert KEY not in outcome.out + outcome.err
    found = document(run("route", "--model", CODER, "--json", *where))
    assert found["chosen"]["provider"] == "node:box"
    assert running.events() == []
    assert not any(node.calls() for node in market)


def test_a_refusal_of_the_gateway_is_a_line(run, running, config, body, monkeypatch):
    where = ("--http-addr", f"127.0.0.1:{running.port}")
    with_key = (*where, "--config", config)
    body(messages=[])
    for arguments, words in (
        (["--model", "nope", *with_key], "404 model_not_available"),
        (["-", *with_key], "messages must not be empty (400 invalid_value)"),
        (["--model", "auto:tasty", *with_key], "only these words are known"),
        ([*where], "401 invalid_api_key"),
    ):
        outcome = run("route", *arguments)
        assert (outcome.code, outcome.out) == (1, ""), arguments
        assert words in outcome.err
        assert outcome.err.count("\n") == 1


def test_the_same_is_refused_without_a_gateway(run, at, config, body):
    body(messages=[])
    for arguments, words in (
        (["--model", "nope"], "404 model_not_available"),
        (["-"], "messages must not be empty (400 invalid_value)"),
        (["--model", "auto:tasty"], "only these words are known"),
    ):
        outcome = run("route", *arguments, *at, "--config", config)
        assert (outcome.code, outcome.out) == (1, "")
        assert words in outcome.err
        assert outcome.err.count("\n") == 1


def test_a_gateway_can_be_left_out(run, running, config, node):
    where = ("--http-addr", f"127.0.0.1:{running.port}", "--config", config)
    here = ("--no-embedded", "--lcpd-grpc-addr", node.address)
    for command in ("route", "models"):
        assert "nothing measured yet" in run(command, "--direct", *where, *here).err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "the request is not JSON"),
        ("[]", "the request is not a JSON object"),
        ('{"model": 5, "messages": ["do-not-print"]}', "does not name its model once"),
    ],
)
def test_a_file_that_is_no_request_is_one_line(content, words, run, tmp_path):
    path = tmp_path / "body.json"
    path.write_text(content)
    outcome = run("route", str(path), "--model", "auto")
    assert (outcome.code, outcome.out) == (1, "")
    assert words in outcome.err
    assert SECRET not in outcome.err


def test_an_endpoint_that_is_none_is_wrong_use(run):
    outcome = run("route", "--endpoint", "images")
    assert (outcome.code, outcome.out) == (2, "")
    assert "chat or responses or completions or embeddings" in outcome.err
