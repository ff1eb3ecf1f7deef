"""Measurements of purchases: work under way, speed, delivery, and trust in peers and nodes."""

from dataclasses import dataclass, field, replace

import pytest

from lcp_gateway.lightning.checks import Mismatch, QuoteMismatch
from lcp_gateway.purchase.errors import PaymentFailed, QuoteExpired, Refused, Undelivered, UpstreamError
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.outcome import EndedBy
from lcp_gateway.purchase.purchase import Purchase
from lcp_gateway.purchase.quote import ProviderSource
from lcp_gateway.purchase.result_buffer import BufferLimits, BufferPool, ResultBuffer
from lcp_gateway.purchase.states import PurchaseEvent, Verdict
from lcp_gateway.routing.measurements import Measurements, Mode
from lcp_gateway.routing.peer_trust import PeerTrust, TrustRules
from lcp_gateway.telemetry.observers import PurchaseObserver
from tests.support.purchases import PEER, TASK, order, quote

NODE = "node:n"
MIB = 1024 * 1024
ENDS = {
    "delivered": (PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.DELIVER),
    "undelivered": (PurchaseEvent.PAY, PurchaseEvent.SETTLE, PurchaseEvent.FAIL_DELIVERY),
    "unknown": (PurchaseEvent.PAY, PurchaseEvent.LOSE_SIGHT),
    "not_paid": (PurchaseEvent.PAY, PurchaseEvent.FAIL_PAYMENT),
    "refused": (PurchaseEvent.REFUSE,),
    "expired": (PurchaseEvent.EXPIRE,),
    "quoted": (),
    "paying": (PurchaseEvent.PAY,),
}
OF_THE_NODE = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "DATA_LOSS", "RESOURCE_EXHAUSTED")
OF_THE_REQUEST = ("INVALID_ARGUMENT", "UNAUTHENTICATED", "NOT_FOUND", "CANCELLED")


@dataclass
class RecordingMetrics:
    """Records the calls to the metrics."""

    speeds: list = field(default_factory=list)
    failovers: list = field(default_factory=list)

    def provider_speed(self, provider_id, source, first_byte_s, tokens_per_s):
        self.speeds.append((provider_id, source, first_byte_s, tokens_per_s))

    def failover(self, *labels):
        self.failovers.append(labels)

    def payment(self, *labels):
        pass

    execute = undelivered = charged = payment


class World:
    def __init__(self) -> None:
        self.now = 0.0
        self.told = RecordingMetrics()
        self.records = Measurements(half_life_s=300, clock=lambda: self.now)
        self.standings = PeerTrust(
            TrustRules(exposure_base_msat=0, exposure_share_ppm=0, breaker_failures=1, breaker_pause_s=30),
            clock=lambda: self.now,
        )
        self.measuring = PurchaseObserver(self.told, self.records, self.standings, None)

    def ends(
        self,
        how="delivered",
        *,
        provider_id=PEER,
        kind=TASK.kind,
        stream=False,
        size=0,
        execute_s=None,
        first_byte_s=None,
        waited_s=0.0,
        error=None,
    ) -> ResultBuffer:
        """Take a purchase through all its states."""
        answer = bought(provider_id, kind=kind, stream=stream)
        self.measuring.quote_taken(answer)
        for event in ENDS[how]:
            answer.purchase.apply(event)
        answer.size, answer.execute_s, answer.waited_s = size, execute_s, waited_s
        answer.first_byte_s, answer.error = first_byte_s, error
        self.measuring.ended(answer)
        return answer

    def view(self, provider_id=PEER, mode=Mode.WHOLE):
        return self.records.view(provider_id, "m", mode)


def bought(provider_id=PEER, *, kind=TASK.kind, stream=False) -> ResultBuffer:
    source = ProviderSource.NODE if provider_id == NODE else ProviderSource.LCP
    made = order(replace(TASK, kind=kind, stream=stream))
    answer = ResultBuffer(made, BufferLimits(), BufferPool(MIB))
    answer.purchase = Purchase(made, replace(quote(), peer_id=provider_id, source=source))
    return answer


def failed(status, provider_id=NODE, verdict=Verdict.NONE) -> PaymentFailed:
    source = ProviderSource.NODE if provider_id == NODE else ProviderSource.LCP
    quoted = replace(quote(), peer_id=provider_id, source=source)
    return PaymentFailed(UpstreamError(status, "words"), verdict, quote=quoted)


@pytest.mark.parametrize(
    ("error", "blamed"),
    [
        (QuoteMismatch(Mismatch.AMOUNT, quote=quote()), True),
        (QuoteExpired("late", quote=quote()), True),
        (UpstreamError("DEADLINE_EXCEEDED", "hung"), True),
        (UpstreamError("UNAVAILABLE", "the daemon is away"), False),
        (Refused("too dear", quote=quote()), False),
    ],
)
def test_a_peer_is_blamed_for_a_quote_that_is_false_or_late_and_not_for_what_the_request_asked(error, blamed):
    world = World()
    world.measuring.quote_failed(PEER, error)
    assert world.standings.available(PEER) is not blamed


@pytest.mark.parametrize("how", ENDS)
def test_a_provider_is_at_work_from_the_quote_to_the_end_whatever_that_is(how):
    world = World()
    first = bought()
    world.measuring.quote_taken(first)
    assert world.records.in_flight(PEER) == 1
    world.ends(how)
    assert world.records.in_flight(PEER) == 1
    world.measuring.ended(first)
    assert world.records.in_flight(PEER) == 0


def test_an_order_without_a_quote_is_not_measured():
    world = World()
    answer = ResultBuffer(order(), BufferLimits(), BufferPool(MIB))
    world.measuring.quote_taken(answer)
    world.measuring.ended(answer)
    assert world.records.in_flight(PEER) == 0 and world.view().expected_s is None


def test_a_whole_answer_is_measured_by_its_length_and_has_no_first_byte():
    world = World()
    world.ends(size=4_000, execute_s=10.0)
    view = world.view()
    assert (view.first_byte_s, view.tokens_per_s) == (None, pytest.approx(100))


def test_a_stream_is_measured_from_its_first_byte():
    world = World()
    world.ends(stream=True, size=15_000, execute_s=3.0, first_byte_s=1.0)
    view = world.view(mode=Mode.STREAM)
    assert view.first_byte_s == pytest.approx(1)
    assert view.tokens_per_s == pytest.approx(50)
    assert world.view().expected_s is None, "whole answers are measured apart"


def test_time_that_a_slow_reader_took_is_not_the_providers():
    world = World()
    world.ends(stream=True, size=15_000, execute_s=103.0, first_byte_s=1.0, waited_s=100.0)
    assert world.view(mode=Mode.STREAM).tokens_per_s == pytest.approx(50)


def test_an_embedding_is_measured_by_its_time_alone():
    world = World()
    world.ends(provider_id=NODE, kind=TaskKind.EMBEDDINGS, size=100_000, execute_s=0.5)
    view = world.view(NODE, Mode.EMBEDDING)
    assert (view.first_byte_s, view.tokens_per_s) == (pytest.approx(0.5), None)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"execute_s": 0.0, "first_byte_s": 0.0},
        {"execute_s": 1.0, "first_byte_s": 1.0, "size": 10**9},
        {"execute_s": 1.0, "first_byte_s": 2.0, "waited_s": 5.0},
    ],
)
def test_unusual_figures_do_no_harm(odd, stream):
    world = World()
    world.ends(stream=stream, **odd)
    view = world.view(mode=Mode.STREAM if stream else Mode.WHOLE)
    assert 0 < view.expected_s < float("inf")


def test_the_metrics_get_the_speed_that_routing_uses():
    world = World()
    world.ends(provider_id=NODE, size=4_000, execute_s=10.0)
    assert world.told.speeds == [(NODE, "node", None, pytest.approx(100))]


@pytest.mark.parametrize(
    ("how", "is_held_against_it"),
    [
        ("delivered", False),
        ("undelivered", True),
        ("unknown", True),
        ("not_paid", True),
        ("refused", False),
        ("expired", False),
        ("quoted", False),
    ],
)
def test_only_what_did_not_come_is_held_against_a_provider(how, is_held_against_it):
    world = World()
    world.ends(how)
    assert (world.view().delivery < 1) is is_held_against_it


@pytest.mark.parametrize("status", OF_THE_REQUEST)
def test_what_a_node_refuses_for_good_reason_is_not_held_against_it(status):
    world = World()
    world.ends("not_paid", provider_id=NODE, error=failed(status))
    assert world.view(NODE).delivery == 1


@pytest.mark.parametrize("status", OF_THE_NODE)
def test_a_nodes_own_failure_is_held_against_it(status):
    world = World()
    world.ends("not_paid", provider_id=NODE, error=failed(status))
    assert world.view(NODE).delivery < 1


def test_a_node_that_was_paid_and_sent_no_right_result_has_not_delivered():
    world = World()
    world.ends("undelivered", provider_id=NODE, error=Undelivered("cut"))
    assert world.view(NODE).delivery < 1


@pytest.mark.parametrize("status", OF_THE_REQUEST)
def test_a_peer_that_does_not_take_the_payment_has_not_delivered(status):
    world = World()
    world.ends("not_paid", error=failed(status, PEER))
    assert world.view().delivery < 1


@pytest.mark.parametrize("status", OF_THE_NODE)
def test_a_node_that_fails_has_no_work_under_way_and_is_measured_as_failed(status):
    world = World()
    answer = bought(NODE)
    world.measuring.quote_taken(answer)
    world.measuring.node_failed(answer.purchase, failed(status), fails_over=True)
    assert world.records.in_flight(NODE) == 0
    assert world.view(NODE).delivery < 1
    assert world.standings.readiness(NODE) == 0
    assert len(world.told.failovers) == 1


@pytest.mark.parametrize("status", OF_THE_REQUEST)
def test_a_node_that_refuses_the_request_keeps_its_measurements(status):
    world = World()
    answer = bought(NODE)
    world.measuring.quote_taken(answer)
    world.measuring.node_failed(answer.purchase, failed(status), fails_over=True)
    assert world.records.in_flight(NODE) == 0
    assert world.view(NODE).delivery == 1
    assert world.standings.readiness(NODE) == 1


def test_the_last_node_that_falls_out_is_counted_once_at_the_end():
    world = World()
    answer = bought(NODE)
    world.measuring.quote_taken(answer)
    error = failed("UNAVAILABLE")
    world.measuring.node_failed(answer.purchase, error, fails_over=False)
    assert world.records.in_flight(NODE) == 1
    assert world.told.failovers == []
    for event in ENDS["not_paid"]:
        answer.purchase.apply(event)
    answer.error = error
    world.measuring.ended(answer)
    assert world.records.in_flight(NODE) == 0
    other = World()
    other.records.failed(NODE)
    assert world.view(NODE).delivery == pytest.approx(other.view(NODE).delivery)


def test_the_next_provider_is_at_work_after_a_failover():
    world = World()
    answer = bought(NODE)
    world.measuring.quote_taken(answer)
    world.measuring.node_failed(answer.purchase, failed("UNAVAILABLE"), fails_over=True)
    answer.purchase = bought(PEER).purchase
    world.measuring.quote_taken(answer)
    assert (world.records.in_flight(NODE), world.records.in_flight(PEER)) == (0, 1)


def test_what_was_bought_is_measured_under_the_name_that_its_provider_knows():
    world = World()
    answer = bought()
    answer.purchase.order = order(replace(TASK, model="real"))
    for event in ENDS["delivered"]:
        answer.purchase.apply(event)
    answer.size, answer.execute_s = 4_000, 10.0
    world.measuring.ended(answer)
    world.ends(provider_id="other", size=400, execute_s=10.0)
    real = world.records.view(PEER, "real", Mode.WHOLE)
    assert real.tokens_per_s > 50


@pytest.mark.parametrize("party", EndedBy)
def test_a_node_that_is_silent_until_its_time_is_over_is_paused_and_one_whose_client_leaves_is_not(party):
    world = World()
    answer = bought(NODE)
    answer.purchase.quote = replace(answer.purchase.quote, on_delivery=True)
    answer.purchase.interrupted_by = party
    for event in ENDS["not_paid"]:
        answer.purchase.apply(event)
    world.measuring.ended(answer)
    assert world.standings.available(NODE) is (party is not EndedBy.PROVIDER)
