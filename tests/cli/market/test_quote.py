"""``quote``: the price of a request and every check of it, without a payment."""

import dataclasses
import io
import json
import sys
from datetime import UTC, timedelta

import pytest

from lcp_gateway.cli.market.quote import check_all
from lcp_gateway.purchase.order import Task, TaskKind
from tests.support.written_purchases import NOW, Bought

BOUGHT = Bought(1)
TASK = Task(TaskKind.CHAT_COMPLETIONS, "m", BOUGHT.request, stream=False)
CHECKS = {"protocol_version", "terms_hash", "signature", "network", "payee", "amount", "description_hash",
          "expiry", "expired"}  # fmt: skip


@pytest.fixture
def at(node):
    return ("--lcpd-grpc-addr", node.address)


def body(**fields):
    messages = [{"role": "user", "content": "Hello"}]
    return json.dumps({"model": "echo-mini", "messages": messages} | fields)


def test_a_prompt_is_quoted_and_nothing_is_paid(run, at, node):
    before = len(node.events.read_text().splitlines()) if node.events.exists() else 0
    outcome = run("quote", "--prompt", "Hello", "--model", "echo-1", *at)
    assert outcome.code == 0, outcome.err
    lines = dict(line.split(None, 1) for line in outcome.out.splitlines())
    assert lines["model"] == "echo-1"
    assert lines["limits"] == "ok"
    assert outcome.out.splitlines()[-1] == "nothing was paid"
    events = [json.loads(line)["kind"] for line in node.events.read_text().splitlines()[before:]]
    assert events == ["quote", "cancel"]


def test_a_quote_as_json_has_every_check(run, at):
    outcome = run("quote", "--prompt", "Hello", "--network", "regtest", "--json", *at)
    assert outcome.code == 0, outcome.err
    shown = json.loads(outcome.out)
    assert shown["object"] == "lcp.quote"
    assert shown["may_be_bought"] is True
    assert shown["max_fee_msat"] == 1000 + -(-shown["price_msat"] // 100)
    assert {check["name"]: check["ok"] for check in shown["checks"]} == dict.fromkeys(CHECKS, True)
    assert len(shown["terms_hash"]) == 64


def test_a_file_is_quoted_as_the_bytes_that_it_holds(run, at, tmp_path):
    path = tmp_path / "body.json"
    path.write_text(body(max_tokens=5) + "  \n")
    shown = json.loads(run("quote", str(path), "--json", *at).out)
    assert (shown["model"], shown["task_kind"]) == ("echo-mini", "openai.chat_completions.v1")
    path.write_text(body(max_tokens=50))
    assert json.loads(run("quote", str(path), "--json", *at).out)["price_msat"] > shown["price_msat"]


def test_a_request_may_come_on_standard_input_and_tells_its_endpoint(run, at, monkeypatch):
    request = json.dumps({"model": "echo-1", "input": "Hello"}).encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(request)))
    outcome = run("quote", "-", "--json", *at)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["task_kind"] == "openai.responses.v1"


def test_the_endpoint_of_a_prompt_can_be_chosen(run, at):
    shown = json.loads(run("quote", "--prompt", "x", "--kind", "responses", "--json", *at).out)
    assert shown["task_kind"] == "openai.responses.v1"


def test_a_quote_over_a_limit_would_not_be_bought(run, at):
    for limit in ("--max-price-msat", "--max-total-msat"):
        outcome = run("quote", "--prompt", "x", limit, "5", *at)
        assert outcome.code == 1
        assert "the limit is 5 msat" in outcome.out
        assert outcome.out.splitlines()[-1] == "it would NOT be bought; nothing was paid"


def test_an_invoice_for_another_network_would_not_be_bought(run, at):
    outcome = run("quote", "--prompt", "x", "--network", "mainnet", *at)
    assert outcome.code == 1
    assert "FAILED its invoice is for another network" in outcome.out


@pytest.mark.parametrize(
    "arguments", [[], ["f", "--prompt", "x"], ["--prompt", "x", "--kind", "images"], ["f", "--model", "m"]]
)
def test_wrong_use_is_one_line(arguments, run):
    outcome = run("quote", *arguments)
    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 5}', '{"model": ""}'])
def test_a_file_that_is_no_request_is_one_line(content, run, at, tmp_path):
    path = tmp_path / "body.json"
    path.write_text(content)
    outcome = run("quote", str(path), *at)
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.startswith("lcp-gateway: the request is no")


def test_a_model_that_no_provider_offers_is_reported(run, at):
    outcome = run("quote", "--prompt", "x", "--model", "gpt-none", *at)
    assert outcome.code == 1
    assert "no connected provider offers the model" in outcome.err


def test_without_a_daemon_the_quote_fails_in_one_line(run):
    outcome = run("quote", "--prompt", "x", "--lcpd-grpc-addr", "127.0.0.1:1", "--preflight-timeout-s", "1")
    assert outcome.code == 1
    assert "the daemon at 127.0.0.1:1 does not answer" in outcome.err


def wrong(quote, task=TASK, now=NOW, network="bcrt"):
    return {one.name for one in check_all(task, quote, now, network=network) if one.ok is False}


def test_a_right_quote_passes_every_check():
    found = check_all(TASK, BOUGHT.quote, NOW, network="bcrt")
    assert {one.name for one in found} == CHECKS
    assert all(one.ok and not one.words for one in found)


def test_each_wrong_part_is_found_and_the_rest_is_checked_all_the_same():
    quote, change = BOUGHT.quote, dataclasses.replace
    assert wrong(quote, network="bc") == {"network"}
    assert wrong(quote, now=NOW + timedelta(hours=1)) == {"expired"}
    assert wrong(change(quote, protocol_version=3)) == {"terms_hash", "description_hash"}
    assert wrong(change(quote, protocol_version=4)) == {
        "protocol_version", "terms_hash", "description_hash",
    }  # fmt: skip
    assert wrong(change(quote, price_msat=999)) == {"terms_hash", "amount", "description_hash"}
    assert wrong(change(quote, peer_id="02" + "ab" * 32)) == {"payee"}
    assert wrong(change(quote, terms_hash=b"\0" * 32)) == {"terms_hash"}
    early = quote.expires_at - timedelta(seconds=60)
    assert wrong(change(quote, expires_at=early)) == {"terms_hash", "description_hash", "expiry"}
    other = dataclasses.replace(TASK, body=b"{}")
    assert wrong(quote, task=other) == {"terms_hash", "description_hash"}


def test_an_invoice_that_cannot_be_read_leaves_its_checks_open():
    found = {
        one.name: one.ok
        for one in check_all(TASK, dataclasses.replace(BOUGHT.quote, payment_request="lnbcrt1"), NOW, network=None)
    }
    assert found["malformed"] is False
    assert found["terms_hash"] is True
    assert [found[name] for name in ("payee", "amount", "network", "expired")] == [None] * 4


def test_a_network_that_is_not_set_is_no_failure():
    (network,) = [
        one for one in check_all(TASK, BOUGHT.quote, NOW.astimezone(UTC), network=None) if one.name == "network"
    ]
    assert network.ok is None
    assert network.words.startswith("bcrt")
