"""The cost of nodes: each kind of price, the books, budgets, caps, quotes and repeats."""

import json
import math
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.gateway import run_command
from tests.support.http_node import HttpNodeThread, http_nodes
from tests.support.journaled import counted_msat, query
from tests.support.wire import CHAT, RESPONSES
from tests.system.routing.providers import COMPLETIONS, EMBEDDINGS, ask, info_of, row, served_by, until

STREAMED_OR_NOT = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
REQUEST_MSAT = 700
INPUT_MSAT, OUTPUT_MSAT = 1_500, 4_000
MINUTE_SAT = 60
QUOTE_ONLY = {"X-Lcp-Quote-Only": "true"}
PRICES = {
    "free": {},
    "flat": {"price_per_request_msat": REQUEST_MSAT},
    "tokens": {"price_per_1k_input_msat": INPUT_MSAT, "price_per_1k_output_msat": OUTPUT_MSAT},
    "minutes": {"price_per_minute_sat": MINUTE_SAT, "timeout_s": 60},
    "capped": {"price_per_request_msat": REQUEST_MSAT},
}


@pytest.fixture(scope="module")
def nodes():
    made = {name: HttpNodeThread(name=name, models=(f"m-{name}",)) for name in PRICES}
    made["flat"] = HttpNodeThread(name="flat", models=("m-flat", "nomic-embed-text"))
    with http_nodes(*made.values()):
        yield made


def rows_of(nodes, *names):
    endpoints = ["chat", "responses", "completions", "embeddings"]
    return [row(nodes[name], endpoints=endpoints, **PRICES[name]) for name in names]


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.db"


@pytest.fixture(scope="module")
def served(nodes, journal):
    models = {"m-capped": {"max_price_msat": REQUEST_MSAT - 1}}
    with served_by(*rows_of(nodes, *PRICES), models=models, journal_url=str(journal)) as process:
        yield process


@pytest.fixture(autouse=True)
def unheard(nodes):
    for node in nodes.values():
        node.requests.clear()
    yield
    for node in nodes.values():
        node.behave(delay_s=0.0, token_delay_s=0.0, together=0)


def in_journal(journal, answer):
    """Return the columns of a purchase once it has ended."""
    job = answer.headers["x-lcp-job-id"]
    columns = "state, price_msat, fee_cap_msat, upstream, peer_id, payment_hash, model, task_kind"

    def read():
        return query(journal, f"SELECT {columns} FROM purchases WHERE lower(hex(job_id)) = ?", [job])

    until(lambda: read() and read()[0][0] not in {"paying", "settled"})
    return dict(zip(columns.split(", "), read()[0], strict=True))


@pytest.mark.parametrize("path", [CHAT, RESPONSES, COMPLETIONS, EMBEDDINGS])
def test_a_price_by_request(served, journal, path):
    model = "nomic-embed-text" if path == EMBEDDINGS else "m-flat"
    answer = ask(served, model, path=path)
    assert answer.status == 200 and answer.verdict == "settled"
    assert answer.headers["x-lcp-price-msat"] == str(REQUEST_MSAT)
    written = in_journal(journal, answer)
    assert written["state"] == "delivered" and written["price_msat"] == REQUEST_MSAT
    assert (written["upstream"], written["peer_id"]) == ("openai_http", "node:flat")
    # No invoice, and no fee of a route.
    assert written["payment_hash"] is None and written["fee_cap_msat"] == 0
    assert written["model"] == model


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
def test_a_price_by_tokens_is_what_the_answers_usage_comes_to(served, journal, path):
    answer = ask(served, "m-tokens", path=path)
    usage = answer.json["usage"]
    tokens_in = usage.get("prompt_tokens", usage.get("input_tokens"))
    tokens_out = usage["total_tokens"] - tokens_in
    price = -(-(tokens_in * INPUT_MSAT + tokens_out * OUTPUT_MSAT) // 1_000)
    assert answer.headers["x-lcp-price-msat"] == str(price)
    assert in_journal(journal, answer)["price_msat"] == price


def test_a_streams_head_has_the_ceiling_and_the_books_what_it_came_to(nodes, served, journal):
    nodes["tokens"].behave(token_delay_s=0.02)
    more = {"max_tokens": 100, "stream_options": {"include_usage": True}}
    answer = ask(served, "m-tokens", stream=True, **more)
    [usage] = [found for _, data in answer.blocks if data != "[DONE]" and (found := json.loads(data).get("usage"))]
    price = -(-(usage["prompt_tokens"] * INPUT_MSAT + usage["completion_tokens"] * OUTPUT_MSAT) // 1_000)
    assert int(answer.headers["x-lcp-price-msat"]) >= 100 * OUTPUT_MSAT / 1_000 > price
    assert in_journal(journal, answer)["price_msat"] == price


def test_a_stream_without_a_usage_is_charged_about_as_the_same_answer_with_one(served, journal):
    """Most clients do not request the usage of a stream; its SSE framing must not count as tokens."""
    text = "some words that are said again"
    whole = ask(served, "m-tokens", text, max_tokens=4_000)
    stream = ask(served, "m-tokens", text, max_tokens=4_000, stream=True)
    charged, right = (in_journal(journal, one)["price_msat"] for one in (stream, whole))
    assert right / 3 <= charged <= right * 3


def test_a_price_by_minutes_is_for_the_time_it_took(nodes, served, journal):
    nodes["minutes"].behave(delay_s=0.2)
    started = time.monotonic()
    answer = ask(served, "m-minutes")
    took_s = time.monotonic() - started
    price = int(answer.headers["x-lcp-price-msat"])
    # 60 sat a minute are a msat for each millisecond.
    assert 200 <= price <= math.ceil(1_000 * took_s)
    assert in_journal(journal, answer)["price_msat"] == price


@STREAMED_OR_NOT
def test_a_free_request_is_neither_paid_nor_recorded(served, journal, stream):
    before = query(journal, "SELECT count(*) FROM purchases")
    answer = ask(served, "m-free", stream=stream)
    assert answer.verdict == "none" and answer.headers["x-lcp-price-msat"] == "0"
    assert query(journal, "SELECT count(*) FROM purchases") == before


def test_the_command_line_shows_what_nodes_were_paid(served, journal):
    answer = ask(served, "m-flat", "once more")
    in_journal(journal, answer)

    def run(*arguments):
        done = run_command(*arguments, "--journal-url", str(journal))
        assert done.returncode == 0, done.stderr
        return done.stdout

    listed = json.loads(run("purchases", "list", "--json"))
    [found] = [one for one in listed if one["job_id"] == answer.headers["x-lcp-job-id"]]
    assert found["upstream"] == "openai_http" and found["peer_id"] == "node:flat"
    assert found["price_msat"] == REQUEST_MSAT and found["verdict"] == "settled"
    spent = run("spend", "--by", "peer", "--json")
    assert "node:flat" in spent and "node:free" not in spent


# Budgets.


def test_a_budget_is_kept_to_the_last_request(nodes, tmp_path):
    journal = tmp_path / "journal.db"
    limit = 3 * REQUEST_MSAT
    with served_by(*rows_of(nodes, "flat"), journal_url=str(journal), budget_month_msat=limit) as process:
        for _ in range(3):
            in_journal(journal, ask(process, "m-flat"))
        nodes["flat"].requests.clear()
        refused = ask(process, "m-flat")
        assert refused.status == 402 and refused.error["code"] == "budget_exceeded"
        assert refused.verdict == "none" and refused.error["lcp"]["spent_msat"] == limit
        assert not nodes["flat"].calls()
        assert counted_msat(journal) == limit


def test_a_budget_holds_the_ceiling_and_then_what_it_came_to(nodes, tmp_path):
    journal = tmp_path / "journal.db"
    # One ceiling fits beside what one request came to, and no second one: a minute and a half each, as the node may take.
    limit = 150_000
    # The first request is held until the second one was refused.
    nodes["minutes"].behave(delay_s=2.0, together=10**6)
    rows = [row(nodes["minutes"], price_per_minute_sat=MINUTE_SAT, timeout_s=90)]
    with served_by(*rows, journal_url=str(journal), budget_month_msat=limit) as process:
        held = ask(process, "m-minutes", headers=QUOTE_ONLY).json
        assert held["price_msat"] == 90_000 and held["max_fee_msat"] == 0
        with ThreadPoolExecutor(1) as pool:
            started = time.monotonic()
            first = pool.submit(ask, process, "m-minutes")
            until(lambda: counted_msat(journal) == 90_000)
            refused = ask(process, "m-minutes")
            assert refused.status == 402 and refused.error["code"] == "budget_exceeded"
            nodes["minutes"].behave(together=0)
            answer = first.result()
            took_s = time.monotonic() - started
        assert 2_000 <= in_journal(journal, answer)["price_msat"] <= math.ceil(1_000 * took_s)
        assert counted_msat(journal) == int(answer.headers["x-lcp-price-msat"])
        # The part of the hold that was not needed can be spent.
        nodes["minutes"].behave(delay_s=0.0)
        assert ask(process, "m-minutes").status == 200


# Caps.


@STREAMED_OR_NOT
def test_a_models_own_cap_refuses_before_the_node_is_asked(nodes, served, stream):
    answer = ask(served, "m-capped", stream=stream)
    assert answer.status == 402 and answer.error["type"] == "insufficient_quota"
    assert answer.verdict == "none" and answer.error["lcp"]["limit_msat"] == REQUEST_MSAT - 1
    assert not nodes["capped"].calls()


@pytest.mark.parametrize(("limit", "status"), [(REQUEST_MSAT, 200), (REQUEST_MSAT - 1, 402)])
def test_a_clients_own_limit_counts_no_fee_for_a_node(nodes, served, limit, status):
    answer = ask(served, "m-flat", headers={"X-Lcp-Max-Price-Msat": str(limit)})
    assert answer.status == status
    assert len(nodes["flat"].calls()) == (status == 200)


@pytest.mark.parametrize(("limit", "status"), [(REQUEST_MSAT, 200), (REQUEST_MSAT - 1, 402)])
def test_the_operators_cap_holds_for_nodes(nodes, limit, status):
    with served_by(*rows_of(nodes, "flat"), max_total_msat=limit) as process:
        assert ask(process, "m-flat").status == status
    assert len(nodes["flat"].calls()) == (status == 200)


def test_auto_within_a_limit_finds_a_provider_that_is_cheap_enough(served):
    """Of three that are asked for a quote one at least is free, or none that is too dear answers."""
    for number in range(10):
        answer = ask(served, "auto:free", f"{number}", headers={"X-Lcp-Max-Price-Msat": "0"})
        assert answer.status == 200 and info_of(answer)["node"] == "free"


# Quotes.


@STREAMED_OR_NOT
@pytest.mark.parametrize("model", ["m-flat", "auto:cheap"])
def test_a_quote_is_shown_and_taken_and_only_the_taking_reaches_the_node(nodes, served, model, stream):
    quote = ask(served, model, stream=stream, headers=QUOTE_ONLY)
    assert quote.status == 200 and quote.verdict == "none"
    assert not any(node.calls() for node in nodes.values())
    provider = quote.json["peer_id"]
    taken = ask(served, model, stream=stream, headers={"X-Lcp-Quote-Id": quote.json["id"]})
    assert taken.status == 200 and taken.whole
    assert taken.headers["x-lcp-peer-id"] == provider
    assert taken.headers["x-lcp-job-id"] == quote.json["job_id"]
    assert int(taken.headers["x-lcp-price-msat"]) <= quote.json["price_msat"]
    if model != "m-flat":
        assert f"node:{info_of(taken)['node']}" == provider
    assert sum(len(node.calls()) for node in nodes.values()) == 1
    again = ask(served, model, stream=stream, headers={"X-Lcp-Quote-Id": quote.json["id"]})
    # Free purchases are not in the journal, where a taken quote is found.
    is_written_down = quote.json["price_msat"] > 0
    expected = (409, "answer_gone") if is_written_down else (404, "quote_not_found")
    assert (again.status, again.error["code"]) == expected


def test_a_quote_of_auto_is_for_these_bytes_only(nodes, served):
    quote = ask(served, "auto", "one", headers=QUOTE_ONLY).json
    answer = ask(served, "auto", "two", headers={"X-Lcp-Quote-Id": quote["id"]})
    assert answer.status == 409 and answer.error["code"] == "quote_for_another_request"
    assert not any(node.calls() for node in nodes.values())


# Repeats.


@STREAMED_OR_NOT
@pytest.mark.parametrize("model", ["m-free", "m-flat", "auto"])
def test_a_repeat_gets_the_same_answer_without_asking_a_provider_again(nodes, served, model, stream):
    key = {"Idempotency-Key": f"{model}-{stream}"}
    first = ask(served, model, "the same", stream=stream, headers=key)
    again = ask(served, model, "the same", stream=stream, headers=key)
    assert first.status == again.status == 200
    assert again.body == first.body
    for name in ("x-lcp-peer-id", "x-lcp-job-id", "x-lcp-price-msat", "x-lcp-payment"):
        assert again.headers[name] == first.headers[name]
    assert again.headers.get("x-lcp-routing") == first.headers.get("x-lcp-routing")
    assert sum(len(node.calls()) for node in nodes.values()) == 1
    other = ask(served, model, "another", stream=stream, headers=key)
    assert other.status == 422 and other.error["code"] == "idempotency_key_reused"
