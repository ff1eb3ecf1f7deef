"""Customers with accounts and their stored objects: a background job is charged once, and not charged if it ends before the payment."""

import re
import time
from dataclasses import replace

import pytest

from tests.support.gateway import gateway
from tests.support.journaled import money_node, on_node
from tests.support.node_thread import eventually
from tests.support.ports import free_address
from tests.support.stored import (
    begun,
    cancel,
    chat,
    delete,
    ended,
    input_items,
    respond,
    retrieve,
    slow_peers,
    wait_for,
)
from tests.support.wire import CHAT, RESPONSES, document, get, post
from tests.system.selling.seller import MARKUP, Customer, Office, Seller, charged, is_401, selling

FILLED = 10_000_000
# A minute of the slow peer: no test waits for its end.
LONG = "word " * 600
CHALLENGE = re.compile(r'L402 macaroon="([^"]+)", ?invoice="([^"]+)"')


@pytest.fixture(scope="module")
def seller(tmp_path_factory):
    peers = tmp_path_factory.mktemp("node") / "peers.toml"
    peers.write_text(slow_peers(20.0))
    node = free_address()
    env = selling(node_listen=node, node_peers_file=peers, node_faults="true", l402="true", exposure_base_msat=10**9)
    with gateway(env=env) as running:
        yield Seller(running, node)
        Office(running.port).is_in_order()


@pytest.fixture
def customer(seller) -> Customer:
    return seller.office.customer(FILLED)


def moved(customer: Customer) -> list[tuple[str, int]]:
    """The movements of the balance since it was filled."""
    return customer.moved()[1:]


def test_a_background_response_is_charged_once(customer):
    """However often it is polled, and whichever client repeats the request."""
    key = {**customer.headers, "Idempotency-Key": "one"}
    body = document(RESPONSES, "echo-slow", background=True, max_output_tokens=8)
    made = [post(customer.port, RESPONSES, body, key) for _ in range(3)]
    [response_id] = {answer.json["id"] for answer in made}
    found = ended(customer.port, response_id, headers=customer.headers)
    assert found.json["status"] == "completed"
    price = int(found.headers["x-lcp-price-msat"])
    amount = MARKUP.charge_msat(price)
    assert charged(found) == amount
    for _ in range(3):
        retrieve(customer.port, response_id, headers=customer.headers)
        retrieve(customer.port, response_id, "?stream=true", headers=customer.headers)
    assert post(customer.port, RESPONSES, body, key).json == found.json
    customer.eventually_has(balance_msat=FILLED - amount, held_msat=0)
    assert [amount for _, amount in moved(customer)] == [-amount]


def test_a_job_that_is_cancelled_before_it_is_paid_costs_nothing(customer):
    response_id = begun(customer.port, model="slow-quote", headers=customer.headers)
    assert cancel(customer.port, response_id, headers=customer.headers).json["status"] == "cancelled"
    customer.eventually_has(balance_msat=FILLED, held_msat=0, available_msat=FILLED)
    assert moved(customer) == []


def test_a_job_that_is_cancelled_after_it_was_paid_is_settled_and_holds_nothing(customer):
    body = document(RESPONSES, "echo-slow", LONG, background=True, stream=False)
    response_id = post(customer.port, RESPONSES, body, customer.headers).json["id"]
    wait_for(customer.port, response_id, lambda it: it["status"] == "in_progress", headers=customer.headers)
    time.sleep(0.3)
    done = cancel(customer.port, response_id, headers=customer.headers)
    assert done.json["status"] == "cancelled"
    if done.verdict == "settled":
        customer.eventually_has(held_msat=0)
    else:
        # Not known yet: the charge stays held.
        assert customer.balance()["held_msat"] > 0
    customer.office.is_in_order()


def test_a_job_that_fails_unpaid_gives_everything_back(customer):
    response_id = begun(customer.port, model="fault/no-route", headers=customer.headers)
    assert ended(customer.port, response_id, headers=customer.headers).json["status"] == "failed"
    customer.eventually_has(balance_msat=FILLED, held_msat=0)


def test_a_job_of_a_customer_without_balance_fails_with_insufficient_balance(seller):
    poor = seller.office.customer(1)
    response_id = begun(poor.port, headers=poor.headers)
    found = ended(poor.port, response_id, headers=poor.headers)
    assert found.json["status"] == "failed"
    assert found.json["error"]["code"] == "insufficient_balance"
    assert found.json["lcp"]["payment"] == "none"
    poor.eventually_has(balance_msat=1, held_msat=0)


def test_retrieving_is_free_and_chaining_is_charged(customer):
    first = respond(customer.port, "one", headers=customer.headers, max_output_tokens=8)
    second = respond(
        customer.port, "two", headers=customer.headers, previous_response_id=first.json["id"], max_output_tokens=8
    )
    assert charged(second) > charged(first)
    # The delivery is recorded right after the answer.
    customer.eventually_has(held_msat=0)
    before = customer.balance()
    retrieve(customer.port, first.json["id"], headers=customer.headers)
    assert input_items(customer.port, second.json["id"], headers=customer.headers)
    delete(customer.port, f"{RESPONSES}/{first.json['id']}", headers=customer.headers)
    assert customer.balance() == before


def test_what_a_key_stores_is_that_keys_alone(seller, customer):
    """Not even another key of the same account sees it."""
    other = Customer(seller.port, customer.account_id, seller.office.key(customer.account_id)["key"])
    made = respond(seller.port, headers=customer.headers).json["id"]
    job = begun(seller.port, model="slow-quote", headers=customer.headers)
    for response_id in (made, job):
        assert retrieve(seller.port, response_id, headers=other.headers).status == 404
        assert cancel(seller.port, response_id, headers=other.headers).status == 404
    assert retrieve(seller.port, made, headers=customer.headers).status == 200
    cancel(seller.port, job, headers=customer.headers)


def test_a_key_that_is_revoked_or_wrong_sees_nothing(seller, customer):
    made = seller.office.key(customer.account_id)
    headers = {"Authorization": f"Bearer {made['key']}"}
    stored = respond(seller.port, headers=headers).json["id"]
    assert retrieve(seller.port, stored, headers=headers).status == 200
    assert seller.office.delete(f"keys/{made['id']}").status < 300
    eventually(lambda: is_401(retrieve(seller.port, stored, headers=headers)))


def test_an_agents_address_has_a_store_of_its_own(seller, customer):
    agent = seller.office.key(customer.account_id, kind="agent")
    base = agent["agent_path"].removesuffix("/v1")
    body = document(RESPONSES, max_output_tokens=8)
    made = post(seller.port, f"{base}/v1/responses", body).json["id"]
    for prefix in (f"{base}/v1", base):
        assert get(seller.port, f"{prefix}/responses/{made}").status == 200
        assert get(seller.port, f"{prefix}/responses/{made}/input_items").status == 200
        assert get(seller.port, f"{prefix}/chat/completions").json["data"] == []
    assert retrieve(seller.port, made, headers=customer.headers).status == 404
    stored = chat(seller.port, headers=customer.headers).json["id"]
    assert get(seller.port, f"{base}/v1/chat/completions/{stored}").status == 404
    assert get(seller.port, f"{CHAT}/{stored}", customer.headers).status == 200


def test_jobs_in_the_background_count_against_a_keys_jobs_until_they_end(seller):
    customer = seller.office.customer(FILLED, concurrent_jobs=1)
    response_id = begun(seller.port, model="slow-quote", headers=customer.headers)
    refused = respond(seller.port, headers=customer.headers)
    assert refused.status == 429 and refused.verdict == "none"
    assert begun_status(customer) == 429
    assert retrieve(seller.port, response_id, headers=customer.headers).status == 200
    cancel(seller.port, response_id, headers=customer.headers)
    eventually(lambda: respond(seller.port, headers=customer.headers).status == 200)
    done = begun(seller.port, headers=customer.headers)
    ended(seller.port, done, headers=customer.headers)
    eventually(lambda: respond(seller.port, headers=customer.headers).status == 200)


def begun_status(customer: Customer) -> int:
    return respond(customer.port, background=True, headers=customer.headers).status


def test_an_l402_token_opens_its_own_store(seller):
    challenge = respond(seller.port, background=True)
    assert challenge.status == 402
    found = CHALLENGE.fullmatch(challenge.headers["www-authenticate"])
    token = f"L402 {found[1]}:{seller.pay(found[2]).preimage.hex()}"
    headers = {"Authorization": token}
    response_id = begun(seller.port, headers=headers, max_output_tokens=8)
    done = ended(seller.port, response_id, headers=headers)
    assert done.json["status"] == "completed"
    chained = respond(seller.port, "more", headers=headers, previous_response_id=response_id, max_output_tokens=8)
    assert chained.status == 200
    assert retrieve(seller.port, response_id).status == 401


def test_a_gateway_that_is_killed_while_it_pays_holds_the_charge_and_says_so(tmp_path):
    with money_node(tmp_path, toml="[wallet]\npayment_latency_s = 60.0\n" + slow_peers(20.0)) as node:
        env = on_node(node, journal_url=tmp_path / "journal.db") | selling()
        with gateway(embedded=False, env=env) as running:
            customer = Office(running.port).customer(FILLED)
            response_id = begun(running.port, headers=customer.headers, max_output_tokens=8)
            eventually(lambda: node.events("accept"))
            running.process.kill()
            running.process.wait(60)
        with gateway(embedded=False, env=env) as running:
            again = replace(customer, port=running.port)
            found = retrieve(running.port, response_id, headers=again.headers)
            assert found.json["status"] == "failed"
            assert found.verdict == found.json["lcp"]["payment"] == "unknown"
            price = found.json["lcp"]["price_msat"]
            assert again.balance()["held_msat"] == MARKUP.charge_msat(price)
            assert retrieve(running.port, response_id).status == 401
            again.office.is_in_order()
