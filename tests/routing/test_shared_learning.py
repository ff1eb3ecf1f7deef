"""What one process learns about peers, another knows that takes its events in: the same trust and the same measurements."""

from contextlib import suppress
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from lcp_gateway.purchase.errors import PeerNotTrusted
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.averages import RequestSize
from lcp_gateway.routing.measurements import Measurements, Mode
from lcp_gateway.routing.peer_trust import PeerTrust, TrustEvent, TrustRules
from tests.support.purchases import quote

RULES = TrustRules(
    exposure_base_msat=20_000, exposure_share_ppm=500_000, exposure_unproven_msat=25_000, breaker_failures=3
)
PEERS = ("p1", "p2")
STEPS = st.lists(
    st.tuples(
        st.integers(0, 1),
        st.sampled_from(
            ("check", "paying", "released", "failed_to_quote", "quoted", "delivered", "undelivered", "unknown")
        ),
        st.sampled_from(PEERS),
        st.integers(0, 5),
        st.integers(1, 9_000),
        st.floats(0, 40),
    ),
    max_size=60,
)


@given(STEPS)
@settings(deadline=None)
def test_two_processes_that_hear_each_other_trust_alike(steps):
    now = [0.0]
    both = [PeerTrust(RULES, clock=lambda: now[0]) for _ in range(2)]
    for one, other in (both, both[::-1]):
        one.on_event = lambda event, other=other: other.learn(TrustEvent(*event))
    for at, what, peer_id, number, price_msat, passes_s in steps:
        now[0] += passes_s
        trust, taken = both[at], replace(quote(), peer_id=peer_id, job_id=number.to_bytes(32), price_msat=price_msat)
        match what:
            case "check":
                with suppress(PeerNotTrusted):
                    trust.check(taken)
            case "paying":
                trust.paying(taken)
            case "released":
                trust.released(taken)
            case "failed_to_quote" | "quoted":
                getattr(trust, what)(peer_id)
            case _:
                trust.ended(taken, State(what))
        for peer in PEERS:
            first, second = both[0].standing(peer), both[1].standing(peer)
            assert first == second
            assert both[0].allowance(peer) == both[1].allowance(peer)
            assert both[0].readiness(peer) == both[1].readiness(peer)
    assert sorted(both[0].unknown_jobs()) == sorted(both[1].unknown_jobs())


def test_two_processes_that_hear_each_other_measure_alike():
    now = [0.0]
    both = [Measurements(half_life_s=60, clock=lambda: now[0]) for _ in range(2)]
    for one, other in (both, both[::-1]):
        one.on_event = other.learn
    for number in range(20):
        now[0] += number
        one = both[number % 2]
        one.quoted("p1", "m", 1_000 + number, RequestSize(100 * number, number))
        one.delivered("p1", "m", Mode.STREAM, first_byte_s=0.1 * number, tokens_per_s=None, tokens=float(number))
        if number % 3 == 0:
            one.failed("p2")
        now[0] += 2
        views = [[it.view(peer, "m", Mode.STREAM) for peer in PEERS] for it in both]
        assert views[0] == views[1]
        assert both[0].price("p1", "m") == both[1].price("p1", "m")
    both[0].learn(["unknown", 1])
