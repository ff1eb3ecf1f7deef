import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.states import Verdict
from lcp_gateway.upstreams.openai.errors import http_error
from tests.support.cases import each_case

KEY = "sk-secret-0123456789"


def of(status, body, key=""):
    return http_error(status, body if isinstance(body, bytes) else json.dumps(body).encode(), key)


@each_case(
    "status, name, retryable",
    [
        (301, "UNAVAILABLE", False),
        (307, "UNAVAILABLE", False),
        (400, "INVALID_ARGUMENT", False),
        (401, "UNAVAILABLE", False),
        (402, "UNAVAILABLE", False),
        (403, "UNAVAILABLE", False),
        (404, "NOT_FOUND", False),
        (405, "UNIMPLEMENTED", False),
        (408, "DEADLINE_EXCEEDED", True),
        (409, "FAILED_PRECONDITION", False),
        (413, "INVALID_ARGUMENT", False),
        (418, "FAILED_PRECONDITION", False),
        (422, "INVALID_ARGUMENT", False),
        (429, "RESOURCE_EXHAUSTED", True),
        (500, "UNAVAILABLE", True),
        (502, "UNAVAILABLE", True),
        (503, "UNAVAILABLE", True),
        (504, "DEADLINE_EXCEEDED", True),
        (599, "UNAVAILABLE", True),
        (999, "UNAVAILABLE", True),
    ],
)
def test_each_status_has_its_code_and_nothing_was_bought(status, name, retryable):
    error = of(status, b"")
    assert (error.status, error.retryable, error.evidence) == (name, retryable, Verdict.NONE)
    assert error.message


@each_case(
    "body, message, code",
    [
        ({"error": {"message": "too long", "code": "context_length_exceeded"}}, "too long", "context_length_exceeded"),
        ({"error": {"message": "no", "code": 400}}, "no", None),
        ({"error": {"message": "no", "code": "Not A Code"}}, "no", None),
        ({"error": "model is loading"}, "model is loading", None),
        ({"object": "error", "message": "bad", "code": "x"}, "bad", "x"),
        ({"detail": "Not Found"}, "Not Found", None),
        (
            {"detail": [{"loc": ["body", "n", 0], "msg": "is no number", "input": "PROMPT"}]},
            "body.n.0: is no number",
            None,
        ),
        ({"detail": [{"msg": "bad"}, 3, {"loc": 1}]}, "bad", None),
        ({"error": {}}, "the node answered with HTTP status 400", None),
        (["x"], "the node answered with HTTP status 400", None),
        (b"<html>Bad Gateway</html>", "the node answered with HTTP status 400", None),
        ({"error": {"message": "a\x00b\nc"}}, "a b c", None),
    ],
)
def test_a_nodes_own_words_are_passed_on_in_whatever_form_it_writes_them(body, message, code):
    error = of(400, body)
    assert (error.message, error.code) == (message, code)


def test_a_long_message_is_bounded():
    assert len(of(400, {"error": "x" * 10_000}).message) == 500


@pytest.mark.parametrize("status", [401, 402, 403, 302])
def test_errors_that_only_the_operator_can_fix_have_fixed_texts(status):
    error = of(status, {"error": {"message": f"Incorrect API key: {KEY[:6]}***", "code": "c"}}, KEY)
    assert "Incorrect" not in error.message
    assert error.code is None


@given(st.text(max_size=40), st.sampled_from([KEY, f"Bearer {KEY}", "bearer  something.else"]))
def test_no_key_is_ever_quoted(around, secret):
    error = of(400, {"error": {"message": around + secret + around, "code": KEY}}, KEY)
    assert KEY not in error.message
    assert "something.else" not in error.message
    assert error.code is None


def test_a_key_that_is_cut_by_the_bound_is_not_quoted_in_part():
    error = of(400, {"error": "x" * 495 + KEY}, KEY)
    assert "sk-" not in error.message


@given(st.integers(300, 599), st.binary(max_size=200))
def test_any_body_gives_an_error(status, body):
    assert http_error(status, body, KEY).message
