import asyncio
import contextlib
import logging
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import SpanKind, StatusCode

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.tracing import TraceStep
from tests.support.spans import Kept

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
UNSAMPLED = f"00-{TRACE}-{SPAN}-00"
SAFE_HEADER = re.compile(r"[\x20-\x7e]*")


def facts(**found):
    return found


def test_steps_are_children_of_the_request_and_calls_are_a_clients():
    kept = Kept()
    with kept.tracing.request([], []) as root:
        root.name("chat m")
        with kept.tracing.span(TraceStep.ROUTE):
            pass
        with kept.tracing.span(TraceStep.PAY) as span:
            span.note(facts, **{"lcp.price_msat": 5})
    assert kept.names == ["route", "pay", "chat m"]
    root = kept["chat m"]
    assert root.kind is SpanKind.SERVER and root.parent is None
    assert kept["route"].kind is SpanKind.INTERNAL and kept["pay"].kind is SpanKind.CLIENT
    assert kept["pay"].attributes == {"lcp.price_msat": 5}
    assert {kept[name].parent.span_id for name in ("route", "pay")} == {root.context.span_id}
    assert len({span.context.trace_id for span in kept.spans}) == 1


def test_outside_of_a_request_nothing_is_traced():
    kept = Kept()
    with kept.tracing.span(TraceStep.QUOTE) as span:
        span.note(facts, a=1)
        span.failed("UNAVAILABLE")
    assert kept.spans == []
    assert kept.tracing.headers() == {}
    assert kept.tracing.origin() is None and kept.tracing.exemplar() is None


async def test_steps_of_a_task_that_outlives_its_request_are_still_of_its_trace():
    kept = Kept()
    gate = asyncio.Event()

    async def buy():
        await gate.wait()
        with kept.tracing.span(TraceStep.STREAM) as span:
            span.note(facts, late=True)

    with kept.tracing.request([PARENT], []) as root:
        root.name("root")
        task = asyncio.create_task(buy())
    assert kept.names == ["root"]
    gate.set()
    await task
    assert kept["stream"].attributes == {"late": True}
    assert kept["stream"].parent.span_id == kept["root"].context.span_id


def test_an_error_is_told_by_its_word_and_nothing_else():
    kept = Kept()
    with contextlib.suppress(UpstreamError), kept.tracing.request([], []), kept.tracing.span(TraceStep.PAY):
        raise UpstreamError("UNAVAILABLE", "SECRET in a message")
    pay = kept["pay"]
    assert pay.attributes == {"error.type": "UNAVAILABLE"}
    assert pay.status.status_code is StatusCode.ERROR and not pay.status.description
    assert not pay.events and "SECRET" not in kept.everything()


def test_what_is_cancelled_has_not_failed():
    kept = Kept()
    with contextlib.suppress(asyncio.CancelledError), kept.tracing.request([], []), kept.tracing.span(TraceStep.QUOTE):
        raise asyncio.CancelledError
    assert kept["quote"].attributes == {"error.type": "cancelled"}
    assert kept["quote"].status.status_code is StatusCode.UNSET


def test_facts_that_cannot_be_had_do_no_harm():
    kept = Kept()
    with kept.tracing.request([], []) as root:
        root.note(lambda: 1 / 0)
    assert kept.names == ["request"]


def test_the_callers_trace_goes_on_here_and_beyond():
    kept = Kept(ratio=0.0)
    with kept.tracing.request([PARENT], ["vendor=1", "other=2"]) as root:
        assert root.trace_id == TRACE
        with kept.tracing.span(TraceStep.PAY):
            headers = kept.tracing.headers()
    assert kept["request"].parent.is_remote
    span_id = f"{kept['pay'].context.span_id:016x}"
    assert headers["traceparent"].startswith(f"00-{TRACE}-{span_id}-0")
    assert headers["tracestate"] == "vendor=1,other=2"


def test_a_caller_that_does_not_trace_is_followed_in_that_too():
    kept = Kept()
    with kept.tracing.request([UNSAMPLED], []) as root:
        root.note(lambda: pytest.fail("not recorded"))
        with kept.tracing.span(TraceStep.PAY) as span:
            span.note(lambda: pytest.fail("not recorded"))
            assert kept.tracing.headers()["traceparent"].startswith(f"00-{TRACE}-")
            assert kept.tracing.headers()["traceparent"].endswith("-00")
        assert kept.tracing.exemplar() is None and kept.tracing.origin() is None
    assert kept.spans == []


def test_the_ratio_is_the_share_of_requests_without_a_trace_of_their_own():
    kept = Kept(ratio=0.25)
    for _ in range(2_000):
        with kept.tracing.request([], []), kept.tracing.span(TraceStep.ROUTE):
            pass
    assert kept.names.count("request") == kept.names.count("route")
    assert 350 < kept.names.count("request") < 650


INVALID = [
    [],
    [""],
    [PARENT, PARENT],
    [PARENT.upper()],
    ["nonsense"],
    ["00"],
    [f"ff-{TRACE}-{SPAN}-01"],
    [f"00-{'0' * 32}-{SPAN}-01"],
    [f"00-{TRACE}-{'0' * 16}-01"],
    [f"00-{TRACE}-{SPAN}-01-more"],
    [f"00-{TRACE[:-1]}-{SPAN}-01"],
    [f"00-{TRACE}-{SPAN}"],
    [f"00-{TRACE}-{SPAN}-1"],
    [f"00_{TRACE}_{SPAN}_01"],
    [f"{PARENT}, {PARENT}"],
    ["\udcff" * 55],
    [f"01-{TRACE}-{SPAN}-01-" + "a" * 5_000],
]


@pytest.mark.parametrize("parents", INVALID, ids=lambda parents: repr(parents)[:40])
def test_a_parent_that_is_not_valid_is_none(parents, caplog):
    kept = Kept()
    with caplog.at_level(logging.WARNING), kept.tracing.request(parents, ["a=b"]) as root:
        assert root.trace_id != TRACE and len(root.trace_id) == 32
    assert kept["request"].parent is None
    assert not caplog.records


@given(
    parents=st.lists(st.text(max_size=600) | st.just(PARENT), max_size=2),
    states=st.lists(st.text(max_size=600) | st.from_regex(r"[a-z]{1,8}=[ -~]{0,40}", fullmatch=True), max_size=3),
)
def test_whatever_the_headers_are_a_request_is_traced_and_what_goes_on_is_safe(parents, states):
    kept = Kept()
    with kept.tracing.request(parents, states) as root:
        assert re.fullmatch("[0-9a-f]{32}", root.trace_id)
        for name, value in kept.tracing.headers().items():
            assert name in {"traceparent", "tracestate"}
            assert SAFE_HEADER.fullmatch(value) and len(value) <= 1_200
    assert len(kept.spans) == 1


def test_a_request_points_to_an_earlier_one():
    kept = Kept()
    with kept.tracing.request([], []) as root:
        root.name("first")
        origin = kept.tracing.origin()
    with kept.tracing.request([], []) as root:
        root.name("second")
        kept.tracing.link(origin)
        kept.tracing.link("nonsense")
    (link,) = kept["second"].links
    assert link.context.span_id == kept["first"].context.span_id
    assert link.context.trace_id == kept["first"].context.trace_id


def test_names_are_short():
    kept = Kept()
    with kept.tracing.request([], []) as root:
        root.name("chat " + "m" * 5_000)
    assert len(kept.names[0]) == 256
