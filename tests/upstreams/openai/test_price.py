import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.adapters.usage import Usage, usage_of
from lcp_gateway.purchase.order import Task, TaskKind
from lcp_gateway.upstreams.openai.price import NodePrice
from tests.support.cases import each_case

CHAT = TaskKind.CHAT_COMPLETIONS


def task(kind=CHAT, **body):
    return Task(kind, "m", json.dumps({"model": "m", **body}).encode(), stream=False)


def test_a_node_without_prices_is_free_and_comes_to_nothing():
    price = NodePrice()
    assert price.is_free
    assert price.most_msat(task(max_tokens=10**9), 3600) == 0
    assert price.list_price_msat() == 0


@pytest.mark.parametrize("part", ["per_request_msat", "per_1k_input_msat", "per_1k_output_msat", "per_minute_msat"])
def test_any_part_makes_it_cost_something(part):
    price = NodePrice(**{part: 1})
    assert not price.is_free
    assert price.most_msat(task(), 1) > 0


def test_all_parts_add_up_and_a_fraction_counts_whole():
    price = NodePrice(per_request_msat=1_000, per_1k_input_msat=100, per_1k_output_msat=300, per_minute_msat=600)
    asked = Task(CHAT, "m", b'{"model":"m","max_tokens":10} ' * 1, stream=False)
    # 15 tokens in (1.5), 10 out (3), 30 s (300)
    assert len(asked.body) == 30
    assert price.most_msat(asked, 30.0) == 1_305
    assert price.list_price_msat() == 1_000 + 50 + 150 + 100


@each_case(
    "kind, body, tokens",
    [
        (CHAT, {}, 4_096),
        (CHAT, {"max_tokens": 10}, 10),
        (CHAT, {"max_completion_tokens": 20, "max_tokens": 10}, 20),
        (CHAT, {"max_tokens": None}, 4_096),
        (CHAT, {"max_tokens": True}, 4_096),
        (CHAT, {"max_tokens": -5}, 4_096),
        (CHAT, {"max_tokens": 1.5}, 4_096),
        (CHAT, {"max_tokens": "7"}, 4_096),
        (CHAT, {"max_tokens": 10, "n": 3}, 30),
        (TaskKind.RESPONSES, {"max_output_tokens": 40, "n": 3}, 40),
        (TaskKind.COMPLETIONS, {"max_tokens": 10, "prompt": "a"}, 10),
        (TaskKind.COMPLETIONS, {"max_tokens": 10, "prompt": ["a", "b"], "n": 2}, 40),
        (TaskKind.COMPLETIONS, {"max_tokens": 10, "prompt": ["a"], "n": 2, "best_of": 5}, 50),
        (TaskKind.COMPLETIONS, {"max_tokens": 10, "prompt": [1, 2, 3]}, 10),
        (TaskKind.COMPLETIONS, {"max_tokens": 10, "prompt": [[1], [2]]}, 20),
        (TaskKind.EMBEDDINGS, {"input": "x"}, 0),
    ],
)
def test_the_output_is_estimated_from_the_requests_limit(kind, body, tokens):
    assert NodePrice(per_1k_output_msat=1_000).most_msat(task(kind, **body), 1) == tokens


def test_a_body_that_only_other_parsers_take_is_read_too():
    body = b'{"model": "m", "max_tokens": 7, "messages": [{"content": "\\ud83d"}]}'
    price = NodePrice(per_1k_output_msat=1_000)
    assert price.most_msat(Task(CHAT, "m", body, stream=False), 1) == 7
    assert price.most_msat(Task(CHAT, "m", b"not json", stream=False), 1) == 4_096
    assert price.most_msat(Task(CHAT, "m", b"[1]", stream=False), 1) == 4_096


def test_an_absurd_limit_still_fits_the_journal():
    price = NodePrice(per_1k_output_msat=10**9)
    assert price.most_msat(task(max_tokens=2**62, n=2**62), 1) < 2**63


def test_the_body_is_not_even_read_where_no_token_costs_anything():
    price = NodePrice(per_request_msat=5)
    assert price.most_msat(Task(CHAT, "m", None, stream=False), 60) == 5


def test_the_charge_follows_the_usage_and_stops_at_the_ceiling():
    price = NodePrice(per_request_msat=10, per_1k_input_msat=1_000, per_1k_output_msat=2_000)
    of = {"body_bytes": 0, "result_bytes": 0, "elapsed_s": 1.0}
    assert price.charge_msat(Usage(3, 4), **of, ceiling_msat=1_000) == 10 + 3 + 8
    assert price.charge_msat(Usage(10**9, 0), **of, ceiling_msat=1_000) == 1_000


def test_without_a_usage_four_bytes_are_a_token():
    price = NodePrice(per_1k_input_msat=1_000, per_1k_output_msat=1_000)
    charge = price.charge_msat(None, body_bytes=9, result_bytes=8, elapsed_s=1.0, ceiling_msat=10**6)
    assert charge == 3 + 2


def test_time_is_charged_as_it_passed():
    price = NodePrice(per_minute_msat=60_000)
    of = {"body_bytes": 0, "result_bytes": 0, "ceiling_msat": 10**6}
    assert price.charge_msat(None, elapsed_s=1.5, **of) == 1_500
    assert price.charge_msat(None, elapsed_s=0.0001, **of) == 1
    assert price.charge_msat(None, elapsed_s=-1, **of) == 0


PRICES = st.integers(0, 10**6)


@given(
    st.builds(NodePrice, PRICES, PRICES, PRICES, PRICES, st.integers(1, 10**5)),
    st.text(max_size=200),
    st.integers(0, 4_096),
    st.floats(0, 100),
)
def test_an_ordinary_charge_never_reaches_past_what_was_quoted(price, text, tokens_out, elapsed_s):
    asked = task(messages=[{"role": "user", "content": text}], max_tokens=4_096)
    most = price.most_msat(asked, 100.0)
    usage = Usage(len(asked.body) // 2, tokens_out)
    charge = price.charge_msat(usage, body_bytes=0, result_bytes=0, elapsed_s=elapsed_s, ceiling_msat=10**18)
    assert 0 <= charge <= most


@each_case(
    "data, usage",
    [
        (b'{"usage":{"prompt_tokens":1,"completion_tokens":2}}', Usage(1, 2)),
        (b'{"usage" : { "input_tokens": 3, "output_tokens": 4 } , "x": 1}', Usage(3, 4)),
        (b'{"usage":{"prompt_tokens":5,"total_tokens":5}}', Usage(5, 0)),
        (b'{"usage":{"input_tokens":1,"details":{"a":{"b":2}},"output_tokens":9}}', Usage(1, 9)),
        # the last one counts, and an empty one does not
        (b'data: {"usage":{"prompt_tokens":1}}\n\ndata: {"usage":{"prompt_tokens":2}}', Usage(2, 0)),
        (b'data: {"usage":{"prompt_tokens":1}}\n\ndata: {"usage":null}\n\n', Usage(1, 0)),
        # a tail that begins inside a value
        (b'\xa9abc"}]}\n\ndata: {"usage":{"prompt_tokens":1}}\n\ndata: [DONE]\n\n', Usage(1, 0)),
        (b'{"usage":{"prompt_tokens":1', None),
        (b'{"usage":{"prompt_tokens":-1,"completion_tokens":true}}', None),
        (b'{"usage":[1]}', None),
        (b'{"usage":{}}', None),
        (b'{"usage"', None),
        (b"", None),
        # text of a model
        (json.dumps({"text": '"usage": {"prompt_tokens": 9}'}).encode(), None),
        (b"\xff\xfe" * 100, None),
    ],
)
def test_the_usage_is_found_wherever_it_stands(data, usage):
    assert usage_of(data) == usage


@given(st.text(), st.integers(0, 10**9), st.integers(0, 10**9))
def test_what_a_model_says_is_never_taken_for_the_usage(text, tokens_in, tokens_out):
    usage = {"prompt_tokens": tokens_in, "completion_tokens": tokens_out}
    said = text + json.dumps({"usage": {"prompt_tokens": 7}})
    data = json.dumps({"usage": usage, "choices": [{"text": said}]}).encode()
    assert usage_of(data) == Usage(tokens_in, tokens_out)


def test_a_long_result_without_a_usage_is_searched_quickly():
    assert usage_of(b'{"usage":null,' * 100_000) is None
