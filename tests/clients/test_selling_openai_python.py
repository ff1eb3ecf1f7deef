"""The quick start of a gateway that sells, with the official Python SDK: pay in, spend until it is gone, pay, go on."""

from contextlib import closing

import openai
import pytest

from tests.support.node_thread import eventually
from tests.system.selling.seller import MARKUP, STATIC_KEY, running_seller

HELLO = [{"role": "user", "content": "hello there"}]
MOST_CALLS = 60
MOST_MODELS = 3


@pytest.fixture(scope="module")
def sold():
    with running_seller() as running:
        yield running
        running.office.is_in_order()


@pytest.fixture(scope="module")
def faulty():
    """A second gateway, on a node that has a model for every fault, which `auto` would choose too."""
    # A retry that comes back later than the grace would find nothing to join.
    with running_seller(node_faults="true", join_grace_s=10) as running:
        yield running
        running.office.is_in_order()


@pytest.fixture(scope="module")
def http_client():
    """One HTTP client for all tests, since creating one takes longer than a test."""
    with openai.DefaultHttpxClient() as made:
        yield made


@pytest.fixture
def sdk(sold, http_client):
    def make(key: str, path: str = "/v1", retries: int = 0, at=sold) -> openai.OpenAI:
        return openai.OpenAI(
            base_url=at.running.base_url + path, api_key=key, max_retries=retries, http_client=http_client
        )

    return make


def spend(client, *, stream: bool):
    """Ask `auto` once; return the headers."""
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=HELLO, max_tokens=40, stream=stream)
    parsed = raw.parse()
    if stream:
        with closing(parsed):
            text = "".join(it.choices[0].delta.content or "" for it in parsed if it.choices)
    else:
        text = parsed.choices[0].message.content
    assert "hello there" in text
    return raw.headers


def refused_or_charged(ask):
    """Return the error of a 402, or None and the charge."""
    try:
        return None, int(ask()["x-lcp-charged-msat"])
    except openai.APIStatusError as error:
        if error.status_code != 402:
            raise
        return error.body["lcp"], 0


@pytest.mark.parametrize("stream", [False, True])
def test_a_customer_pays_in_spends_it_to_the_last_pays_the_402_and_goes_on(sold, sdk, stream):
    customer = sold.office.customer()
    client = sdk(customer.key)
    with pytest.raises(openai.APIStatusError) as empty:
        spend(client, stream=stream)
    assert empty.value.status_code == 402

    topup = customer.top_up(12_000)
    sold.pay(topup["payment_request"])
    # The client does not poll the top-up: the gateway credits it by itself.
    customer.eventually_has(balance_msat=12_000)

    left, calls = 12_000, 0
    with pytest.raises(openai.APIStatusError) as poor:
        while calls < MOST_CALLS:
            before = len(sold.settled())
            reported = spend(client, stream=stream)
            calls += 1
            (paid,) = sold.settled()[before:]
            assert int(reported["x-lcp-price-msat"]) == paid["price_msat"]
            charge = int(reported["x-lcp-charged-msat"])
            assert charge == MARKUP.charge_msat(paid["price_msat"])
            left -= charge
            customer.eventually_has(balance_msat=left)
    assert calls > 1
    error = poor.value
    assert error.status_code == 402 and error.code == "insufficient_balance"
    assert error.type == "insufficient_quota"
    assert error.response.headers["x-lcp-payment"] == "none"
    reported = error.body["lcp"]
    assert reported["balance_msat"] == left < reported["required_msat"]
    missing = reported["required_msat"] - left
    assert missing <= reported["topup"]["amount_msat"] < max(missing + 1_000, 1_001)
    assert customer.balance() == {"balance_msat": left, "held_msat": 0, "available_msat": left}

    # `auto` takes turns between models: what it takes next may cost more than what was refused, and has an invoice too.
    paid_in = 0
    while reported is not None and paid_in < MOST_MODELS:
        sold.pay(reported["topup"]["payment_request"])
        paid_in += 1
        left += reported["topup"]["amount_msat"]
        customer.eventually_has(balance_msat=left)
        reported, charge = refused_or_charged(lambda: spend(client, stream=stream))
        left -= charge
    assert reported is None
    customer.eventually_has(balance_msat=left, held_msat=0)

    moved = customer.moved()
    assert [cause for cause, _ in moved].count("topup") == 1 + paid_in
    assert [cause for cause, _ in moved].count("purchase") == calls + 1
    assert sum(amount for _, amount in moved) == left


@pytest.mark.parametrize("path", ["/api/agent/{}/v1", "/api/agent/{}"])
@pytest.mark.parametrize("kind", ["agent", "api"])
def test_an_agent_needs_only_a_url(sold, sdk, path, kind):
    account_id = sold.office.account(50_000)
    made = sold.office.key(account_id, kind=kind)
    assert (kind == "agent") == ("agent_path" in made)
    client = sdk("whatever the tool puts here", path.format(made["key"]))
    answer = client.chat.completions.create(model="echo-mini", messages=HELLO)
    assert "hello there" in answer.choices[0].message.content
    assert client.responses.create(model="echo-mini", input="hello there").status == "completed"
    assert "echo-mini" in {model.id for model in client.models.list()}
    assert sold.office.balance(account_id)["balance_msat"] < 50_000
    sold.office.delete(f"keys/{made['id']}")
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_the_operators_own_key_goes_on_and_no_customer_is_charged(sold, sdk):
    # The end of a good delivery is written some milliseconds after its last byte.
    eventually(lambda: sold.office.is_in_order()["held_msat"] == 0)
    before = sold.office.is_in_order()
    reported = spend(sdk(STATIC_KEY), stream=False)
    assert "x-lcp-charged-msat" not in reported and "x-lcp-balance-msat" not in reported
    after = sold.office.is_in_order()
    assert after["entries"] == before["entries"]


@pytest.mark.parametrize(
    ("model", "stream", "cause"),
    [
        ("fault/execute-code-unavailable", False, "unknown"),
        ("fault/wrong-hash", False, "refund"),
        ("fault/stream-cut", True, "refund"),
    ],
)
@pytest.mark.parametrize("key", [None, "one-for-all-tries"])
def test_no_retry_is_charged_twice(faulty, sdk, model, stream, cause, key):
    """Tries that the SDK makes of one call, and a call with the same Idempotency-Key after them."""
    customer = faulty.office.customer(100_000)
    client = sdk(customer.key, retries=3, at=faulty)
    before = len(faulty.settled())
    headers = {"Idempotency-Key": f"{key} {model}"} if key else {}

    def ask() -> None:
        answer = client.chat.completions.create(
            model=model, messages=HELLO, stream=stream, extra_headers=headers, max_tokens=40
        )
        if stream:
            list(answer)

    for _ in range(2 if key else 1):
        with pytest.raises((openai.APIError, ConnectionError)):
            ask()
    (paid,) = faulty.settled()[before:]
    charge = MARKUP.charge_msat(paid["price_msat"])
    if cause == "unknown":
        customer.eventually_has(balance_msat=100_000, held_msat=charge)
        assert customer.moved() == [("adjustment", 100_000)]
    else:
        eventually(lambda: len(customer.moved()) == 3)
        assert customer.moved()[1:] == [("purchase", -charge), ("refund", charge)]
        customer.eventually_has(balance_msat=100_000, held_msat=0)


def test_a_wrong_key_is_an_authentication_error(sdk):
    with pytest.raises(openai.AuthenticationError) as refused:
        sdk("lcpg_wrong").models.list()
    assert refused.value.code == "invalid_api_key"


def test_a_keys_limits_are_the_sdks_own_errors(sold, sdk):
    account_id = sold.office.account(100_000)

    def asks(**rules):
        client = sdk(sold.office.key(account_id, **rules)["key"])
        return client.chat.completions.create(model="echo-1", messages=HELLO)

    with pytest.raises(openai.PermissionDeniedError) as refused:
        asks(models=["echo-mini"])
    assert refused.value.code == "model_not_allowed"
    with pytest.raises(openai.PermissionDeniedError) as refused:
        asks(scopes=["wallet"])
    assert refused.value.code == "missing_scope"
    with pytest.raises(openai.RateLimitError):
        asks(tokens_per_minute=1)
    with pytest.raises(openai.APIStatusError) as refused:
        asks(max_price_msat=1)
    assert refused.value.status_code == 402
    assert sold.office.balance(account_id)["balance_msat"] == 100_000
