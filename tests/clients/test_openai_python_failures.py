"""The official Python SDK, when things fail: which exception it raises, what it retries, and what that costs."""

import openai
import pytest

from lcp_gateway.node.faults import FAULTS

HELLO = [{"role": "user", "content": "hello there, this is long enough for a few chunks"}]
# These strike only once a deadline or a second a chunk has passed, or send a hundred megabytes.
SLOW = {"execute-hangs", "stream-stalls", "stream-slow", "stream-floods"}
AFTER_PAYMENT = sorted(name for name, fault in FAULTS.items() if fault.paid and name not in SLOW)
UNHARMED = {"big-result", "empty-chunks", "gzip-encoding", "odd-content-type", "stream-split-utf8"}
CALLS = {
    "chat": lambda client, model: client.chat.completions.create(model=model, messages=HELLO),
    "chat-stream": lambda client, model: list(client.chat.completions.create(model=model, messages=HELLO, stream=True)),
    "responses": lambda client, model: client.responses.create(model=model, input=HELLO),
    "responses-stream": lambda client, model: list(client.responses.create(model=model, input=HELLO, stream=True)),
}


@pytest.fixture(scope="module")
def wire():
    """One HTTP client for all tests, since creating one takes longer than a test; and the requests that it sent."""
    sent = []
    hooks = {"request": [lambda request: sent.append(request.headers["x-stainless-retry-count"])]}
    with openai.DefaultHttpxClient(event_hooks=hooks) as http_client:
        yield http_client, sent


@pytest.fixture
def tries(wire):
    """The `x-stainless-retry-count` of each request of this test."""
    wire[1].clear()
    return wire[1]


@pytest.fixture
def connect(wire):
    """Make an SDK client for a gateway."""

    def open_client(gateway, *, api_key="unused", **options):
        return openai.OpenAI(base_url=gateway.api_url, api_key=api_key, http_client=wire[0], **options)

    return open_client


def parts(error) -> tuple:
    return error.status_code, error.type, error.param, error.code


def test_an_unknown_model_is_not_found_and_not_asked_for_again(connect, running, tries):
    with pytest.raises(openai.NotFoundError) as caught:
        CALLS["chat"](connect(running, max_retries=3), "no-such-model")
    assert parts(caught.value) == (404, "invalid_request_error", "model", "model_not_available")
    assert caught.value.body["message"]
    assert caught.value.request_id.startswith("req_")
    assert tries == ["0"]


def test_an_unknown_model_in_the_list_is_not_found(connect, running):
    with pytest.raises(openai.NotFoundError) as caught:
        connect(running).models.retrieve("no-such-model")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("key", ["sk-wrong", "sk-clients-of-the-tes"])
def test_a_wrong_key_is_an_authentication_error(connect, guarded, guarded_account, tries, key):
    with pytest.raises(openai.AuthenticationError) as caught:
        CALLS["responses"](connect(guarded, api_key=key, max_retries=3), "echo-1")
    assert parts(caught.value) == (401, "authentication_error", None, "invalid_api_key")
    assert caught.value.response.headers["www-authenticate"] == "Bearer"
    assert key not in str(caught.value)
    assert tries == ["0"]
    assert not guarded_account.seen("quote")


@pytest.mark.parametrize("call", CALLS)
def test_a_price_over_the_limit_is_402_and_unpaid(connect, guarded, guarded_account, api_key, tries, call):
    with pytest.raises(openai.APIStatusError) as caught:
        CALLS[call](connect(guarded, api_key=api_key, max_retries=3), "echo-1")
    assert parts(caught.value) == (402, "insufficient_quota", None, "price_limit_exceeded")
    assert caught.value.response.headers["x-lcp-payment"] == "none"
    assert tries == ["0"]
    asked = [event["peer_id"] for event in guarded_account.seen("quote")]
    assert len(asked) == len(set(asked)), "each peer that sells it is asked once, and the SDK does not come back"
    assert guarded_account.accepts == 0


@pytest.mark.parametrize(
    ("change", "param", "code"),
    [
        ({"messages": []}, "messages", "invalid_value"),
        ({"messages": None}, "messages", "missing_required_parameter"),
        ({"model": " echo-1"}, "model", "invalid_value"),
        ({"model": None}, "model", "missing_required_parameter"),
        ({"extra_body": {"stream": "yes"}}, "stream", "invalid_type"),
    ],
    ids=["no-messages", "null-messages", "padded-model", "null-model", "odd-stream"],
)
def test_an_invalid_request_is_a_bad_request(connect, running, account, tries, change, param, code):
    client = connect(running, max_retries=3)
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{"model": "echo-1", "messages": HELLO, **change})
    assert parts(caught.value) == (400, "invalid_request_error", param, code)
    assert tries == ["0"]
    assert not account.seen("quote")


@pytest.mark.parametrize(
    ("status", "raised", "number"),
    [
        ("invalid_argument", openai.BadRequestError, 400),
        ("unauthenticated", openai.AuthenticationError, 401),
        ("permission_denied", openai.PermissionDeniedError, 403),
        ("cancelled", openai.APIStatusError, 408),
        ("aborted", openai.ConflictError, 409),
        ("resource_exhausted", openai.RateLimitError, 429),
        ("internal", openai.InternalServerError, 500),
        ("unimplemented", openai.InternalServerError, 501),
        ("unavailable", openai.InternalServerError, 502),
        ("deadline_exceeded", openai.InternalServerError, 504),
    ],
)
def test_a_quote_that_fails_raises_the_class_of_its_status(connect, running, account, status, raised, number):
    with pytest.raises(raised) as caught:
        CALLS["chat"](connect(running, max_retries=0), f"fault/quote-code-{status}")
    assert caught.value.status_code == number
    assert caught.value.body["message"] == "scripted failure at the quote"
    assert caught.value.response.headers["x-lcp-payment"] == "none"
    assert account.accepts == 0


@pytest.mark.parametrize(
    ("fault", "retried"),
    [
        ("quote-refused", True),
        ("expired", True),
        ("quote-code-internal", True),
        ("quote-code-permission_denied", False),
        ("quote-code-unimplemented", False),
        ("short-job-id", False),
    ],
)
def test_a_failed_quote_is_retried_where_the_gateway_says_so(connect, running, account, tries, fault, retried):
    with pytest.raises(openai.APIStatusError) as caught:
        CALLS["chat"](connect(running, max_retries=1), f"fault/{fault}")
    assert caught.value.response.headers["x-should-retry"] == ("true" if retried else "false")
    assert ("retry-after" in caught.value.response.headers) is retried
    assert tries == (["0", "1"] if retried else ["0"])
    assert account.accepts == 0


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("fault", AFTER_PAYMENT)
def test_what_fails_after_payment_is_paid_once_whatever_the_sdk_may_retry(
    connect, running, account, tries, fault, call
):
    error = None
    try:
        CALLS[call](connect(running, max_retries=3), f"fault/{fault}")
    except (openai.APIError, ValueError) as caught:
        error = caught
    assert tries == ["0"]
    assert account.accepts == account.payments == 1
    if isinstance(error, openai.APIStatusError):
        assert error.response.headers["x-should-retry"] == "false"
        assert error.response.headers["x-lcp-payment"] in {"settled", "unknown"}
    if fault in UNHARMED:
        assert error is None
    else:
        assert error is not None, "a failed answer was taken for a good one"
        # Bytes of a stream that are no text are the provider's, passed on untouched: the SDK's decoder refuses them.
        assert isinstance(error, ValueError) is (fault == "stream-binary" and "stream" in call)


@pytest.mark.parametrize(("fault", "call"), [("execute-hangs", "chat"), ("stream-stalls", "responses-stream")])
def test_a_provider_that_hangs_is_paid_once(connect, hasty, hasty_account, tries, fault, call):
    with pytest.raises(openai.APIError):
        CALLS[call](connect(hasty, max_retries=3), f"fault/{fault}")
    assert tries == ["0"]
    assert hasty_account.accepts == 1


def test_a_payment_without_a_route_may_be_tried_again_and_never_costs(connect, running, account, tries):
    with pytest.raises(openai.BadRequestError) as caught:
        CALLS["chat"](connect(running, max_retries=1), "fault/no-route")
    assert caught.value.code == "payment_failed"
    assert caught.value.response.headers["x-lcp-payment"] == "none"
    assert tries == ["0", "1"]
    # Each try is a purchase of its own: a new quote, taken once.
    assert len({event["job_id"] for event in account.seen("accept")}) == account.accepts == 2
    assert account.payments == 0


@pytest.mark.parametrize("fault", ["stream-cut", "stream-cut-silently"])
def test_a_cut_chat_raises_and_is_never_taken_for_complete(connect, running, fault):
    stream = connect(running).chat.completions.create(model=f"fault/{fault}", messages=HELLO, stream=True)
    chunks = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            chunks.append(chunk)  # noqa: PERF402 - what came before the error counts
    assert caught.value.code == "undelivered"
    assert caught.value.body["lcp"]["payment"] == "settled"
    assert chunks and all(chunk.choices[0].finish_reason is None for chunk in chunks)


@pytest.mark.parametrize("fault", ["stream-cut", "stream-cut-silently", "wrong-hash"])
async def test_a_cut_response_raises_and_is_never_taken_for_complete(running, fault):
    seen = []
    async with openai.AsyncOpenAI(base_url=running.api_url, api_key="unused") as client:
        stream = await client.responses.create(model=f"fault/{fault}", input=HELLO, stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for event in stream:
                seen.append(event.type)
    assert caught.value.code == "undelivered"
    assert seen[0] == "response.created"
    assert "response.completed" not in seen


async def test_a_cut_chat_raises_in_the_async_client_too(running):
    chunks = []
    async with openai.AsyncOpenAI(base_url=running.api_url, api_key="unused") as client:
        stream = await client.chat.completions.create(model="fault/stream-cut", messages=HELLO, stream=True)
        with pytest.raises(openai.APIError) as caught:
            async for chunk in stream:
                chunks.append(chunk)
    assert caught.value.code == "undelivered"
    assert chunks and all(chunk.choices[0].finish_reason is None for chunk in chunks)
