"""Exposure to a peer never exceeds what it has earned."""

from dataclasses import replace
from itertools import count

import pytest

from lcp_gateway.purchase.errors import PeerNotTrusted
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.ports import Exposure
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.peer_trust import RESERVED_S, PeerHistory, PeerTrust, TrustRules
from tests.support.purchases import PEER, quote

DAY_S = 86_400
OTHER_PEER = "03" + "cd" * 32
RULES = TrustRules(exposure_base_msat=10_000, exposure_share_ppm=100_000, breaker_failures=3, breaker_pause_s=10.0)
NUMBERS = count(1)


class Clock:
    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def standings(clock):
    return PeerTrust(RULES, clock=clock)


def asks(price_msat, *, peer=PEER):
    """Return a quote for a job of its own."""
    job_id = next(NUMBERS).to_bytes(32, "big")
    return replace(quote(price_msat), job_id=job_id, peer_id=peer)


def buy(standings, price_msat, *states, peer=PEER):
    """Take one purchase to its last state."""
    bought = asks(price_msat, peer=peer)
    standings.check(bought)
    standings.paying(bought)
    for state in states:
        standings.ended(bought, state)
    return bought


def refuses(standings, price_msat, *, peer=PEER):
    try:
        standings.check(tried := asks(price_msat, peer=peer))
    except PeerNotTrusted:
        return True
    standings.ended(tried, State.REFUSED)
    return False


def room(standings, peer=PEER):
    """Return the highest price that passes."""
    now = standings.standing(peer)
    left = now.limit_msat - now.out_msat - now.undelivered_msat
    assert refuses(standings, left + 1, peer=peer)
    assert left <= 0 or not refuses(standings, left, peer=peer)
    return left


# -- exposure -----------------------------------------------------------------------------------


def test_a_new_peer_is_trusted_with_the_base(standings):
    assert standings.available(PEER)
    assert room(standings) == 10_000


def test_trust_grows_with_deliveries(standings):
    for _ in range(20):
        buy(standings, 5_000, State.DELIVERED)
    assert room(standings) == 10_000 + 100_000 // 10


def test_running_and_unknown_payments_count_until_they_are_resolved(standings):
    buy(standings, 3_000)
    unknown = buy(standings, 4_000, State.UNKNOWN)
    assert room(standings) == 3_000
    standings.ended(unknown, State.NOT_PAID)
    assert room(standings) == 7_000


def test_an_unknown_that_turns_out_to_be_paid_is_lost(standings):
    buy(standings, 4_000, State.UNKNOWN, State.SETTLED)
    standing = standings.standing(PEER)
    assert (standing.out_msat, standing.undelivered_msat) == (0, 4_000)
    assert room(standings) == 6_000


def test_clients_that_leave_neither_reduce_a_peers_trust_nor_trip_its_breaker(standings):
    for _ in range(10):
        left = asks(1_000)
        standings.check(left)
        standings.paying(left)
        standings.released(left)
    standing = standings.standing(PEER)
    assert (standing.out_msat, standing.undelivered_msat, standing.resting_s) == (0, 0, 0)
    assert room(standings) == 10_000


def test_a_checked_quote_counts_before_it_is_paid(standings):
    first = asks(6_000)
    standings.check(first)
    assert refuses(standings, 6_000)
    standings.ended(first, State.REFUSED)
    assert not refuses(standings, 6_000)


def test_exposure_of_a_checked_quote_that_is_never_paid_is_released_after_a_while(standings, clock):
    standings.check(asks(10_000))
    clock.now += RESERVED_S - 1
    assert refuses(standings, 1)
    clock.now += 1
    assert room(standings) == 10_000


def test_exposure_of_a_running_payment_does_not_expire(standings, clock):
    buy(standings, 10_000)
    clock.now += 365 * DAY_S
    assert refuses(standings, 1)


def test_weighing_a_quote_holds_nothing(standings, clock):
    for _ in range(50):
        standings.weigh(asks(10_000))
    assert room(standings) == 10_000
    with pytest.raises(PeerNotTrusted):
        standings.weigh(asks(10_001))
    standings.check(asks(10_000))
    with pytest.raises(PeerNotTrusted):
        standings.weigh(asks(1))


def test_weighing_a_quote_does_not_make_it_the_one_that_is_tried(standings, clock):
    for _ in range(3):
        buy(standings, 1, State.UNDELIVERED)
    with pytest.raises(PeerNotTrusted, match="is paused"):
        standings.weigh(asks(1))
    clock.now += 10
    standings.weigh(asks(1))
    standings.check(asks(1))
    with pytest.raises(PeerNotTrusted, match="is paused"):
        standings.weigh(asks(1))


def test_the_same_quote_may_be_checked_twice_and_counts_once(standings):
    once = asks(6_000)
    standings.check(once)
    standings.check(once)
    standings.paying(once)
    assert standings.standing(PEER).out_msat == 6_000


def test_a_loss_is_worked_off_by_deliveries(standings):
    buy(standings, 2_000, State.UNDELIVERED)
    assert room(standings) == 8_000
    for _ in range(4):
        buy(standings, 5_000, State.DELIVERED)
    assert room(standings) == 8_000, "20,000 delivered outweigh 2,000 lost, and more is earned on top"
    for _ in range(4):
        buy(standings, 5_000, State.DELIVERED)
    assert room(standings) == 10_000


def test_a_peer_that_keeps_more_than_a_tenth_is_cut_off_however_large_the_share(clock):
    # One in eight is lost; never three in a row, so that the breaker stays closed.
    standings = PeerTrust(replace(RULES, exposure_share_ppm=1_000_000), clock=clock)
    losses = 0
    with pytest.raises(PeerNotTrusted):
        for _ in range(100):
            buy(standings, 1_000, State.UNDELIVERED)
            losses += 1
            for _ in range(7):
                buy(standings, 1_000, State.DELIVERED)
    assert losses == 10, "the base"


def test_a_peer_that_rarely_fails_is_trusted_with_more_and_more(standings):
    rooms = []
    for _ in range(5):
        buy(standings, 1_000, State.UNDELIVERED)
        for _ in range(50):
            buy(standings, 1_000, State.DELIVERED)
        rooms.append(room(standings))
    assert rooms == sorted(set(rooms))


def test_a_loss_is_forgiven_at_one_base_a_day(standings, clock):
    buy(standings, 10_000, State.UNDELIVERED)
    assert not standings.available(PEER)
    clock.now += DAY_S / 2
    assert room(standings) == 5_000
    buy(standings, 5_000, State.UNDELIVERED)
    assert standings.standing(PEER).undelivered_msat == 10_000
    clock.now += DAY_S
    assert room(standings) == 10_000
    clock.now += 10 * DAY_S
    assert room(standings) == 10_000, "and never more than all"


def test_peers_do_not_answer_for_each_other(standings):
    buy(standings, 10_000, State.UNDELIVERED)
    assert refuses(standings, 1)
    assert room(standings, OTHER_PEER) == 10_000


def test_a_refusal_tells_the_client_what_it_is_about_and_that_nothing_was_paid(standings):
    buy(standings, 4_000)
    buy(standings, 3_000, State.UNDELIVERED)
    with pytest.raises(PeerNotTrusted, match="nothing was paid") as refused:
        standings.check(asks(3_001))
    assert refused.value.quote.price_msat == 3_001
    assert all(f"{msat} msat" in refused.value.message for msat in (10_000, 4_000, 3_000, 3_001))


def test_a_base_of_zero_sets_no_limit(clock):
    standings = PeerTrust(replace(RULES, exposure_base_msat=0, breaker_failures=0), clock=clock)
    for _ in range(10):
        buy(standings, 10**12, State.UNDELIVERED)
    assert standings.available(PEER)
    assert standings.standing(PEER).limit_msat is None
    assert standings.standing(PEER).undelivered_msat == 10**13


# -- breaker ------------------------------------------------------------------------------------


def test_a_peer_that_fails_to_quote_is_left_alone_and_then_asked_once(standings, clock):
    for _ in range(3):
        assert standings.available(PEER)
        standings.failed_to_quote(PEER)
    assert not standings.available(PEER)
    assert standings.standing(PEER).resting_s == 10
    clock.now += 10
    assert standings.standing(PEER).on_trial
    assert standings.available(PEER)
    assert not standings.available(PEER)
    standings.quoted(PEER)
    assert standings.available(PEER) and standings.available(PEER)


def test_a_quote_that_was_shown_before_cannot_be_taken_from_a_peer_that_is_left_alone(standings):
    shown = asks(1)
    for _ in range(3):
        standings.failed_to_quote(PEER)
    with pytest.raises(PeerNotTrusted, match="is paused"):
        standings.check(shown)


def test_a_peer_that_does_not_deliver_is_tried_with_one_job_at_a_time(standings, clock):
    for _ in range(3):
        buy(standings, 1, State.UNDELIVERED)
    clock.now += 10
    trial = asks(1)
    standings.check(trial)
    standings.paying(trial)
    clock.now += 3_600
    assert refuses(standings, 1), "however long it takes"
    assert not standings.available(PEER)
    standings.ended(trial, State.DELIVERED)
    assert not refuses(standings, 1)
    assert not standings.standing(PEER).on_trial


def test_a_trial_that_could_not_be_paid_makes_room_for_the_next_one(standings, clock):
    for _ in range(3):
        buy(standings, 1, State.UNDELIVERED)
    clock.now += 10
    buy(standings, 1, State.NOT_PAID)
    assert standings.available(PEER)
    assert standings.standing(PEER).on_trial


@pytest.mark.parametrize("states", [(State.NOT_PAID,), (State.UNKNOWN,)], ids=str)
def test_a_payment_that_failed_or_is_unknown_is_no_failure_of_the_peer(standings, states):
    for _ in range(10):
        buy(standings, 1, *states)
    assert standings.available(PEER)


def test_unknown_payments_that_turn_out_to_be_lost_are_failures(standings):
    unknown = [buy(standings, 1, State.UNKNOWN) for _ in range(3)]
    for bought in unknown:
        standings.resolved(PEER, bought.job_id, bought.price_msat, State.SETTLED)
    assert not standings.available(PEER)


def test_a_trial_whose_client_left_makes_room_for_the_next_one(standings, clock):
    """A client that leaves must end the breaker's trial."""
    for _ in range(3):
        buy(standings, 1, State.UNDELIVERED)
    clock.now += 10
    trial = asks(1)
    standings.check(trial)
    standings.paying(trial)
    assert not standings.available(PEER)
    standings.released(trial)
    assert standings.available(PEER)
    assert standings.standing(PEER).on_trial


# -- peers that have not proven themselves, together ---------------------------------------------

TOGETHER = replace(RULES, exposure_unproven_msat=25_000, breaker_failures=0)


def strangers(count):
    return [f"03{number:064x}" for number in range(count)]


@pytest.fixture
def together(clock):
    return PeerTrust(TOGETHER, clock=clock)


def test_unproven_peers_together_get_no_more_than_one_limit(together):
    """Regression: each of many unproven peers had a base exposure of its own."""
    lost = 0
    for peer in strangers(20):
        while not refuses(together, 1_000, peer=peer):
            buy(together, 1_000, State.UNDELIVERED, peer=peer)
            lost += 1_000
    assert lost == 25_000
    assert not together.available("03" + "ff" * 32), "an unknown peer counts as unproven too"
    assert together.readiness("03" + "ff" * 32) == 0.0


def test_exposure_to_unproven_peers_counts_for_all_of_them(together):
    one, two, three = strangers(3)
    open_ = [buy(together, 10_000, peer=one), buy(together, 10_000, State.UNKNOWN, peer=two)]
    assert refuses(together, 5_001, peer=three)
    assert not refuses(together, 5_000, peer=three)
    together.ended(open_[0], State.DELIVERED)
    assert not refuses(together, 10_000, peer=three)


def test_a_quote_that_is_checked_again_counts_once_among_unproven_peers(together):
    one, two, three = strangers(3)
    buy(together, 10_000, peer=one)
    buy(together, 10_000, peer=two)
    asked = asks(5_000, peer=three)
    for _ in range(3):
        together.check(asked)


def test_a_peer_that_has_delivered_a_base_is_proven(together):
    known, *others = strangers(6)
    for _ in range(10):
        buy(together, 1_000, State.DELIVERED, peer=known)
    for peer in others:
        while not refuses(together, 1_000, peer=peer):
            buy(together, 1_000, State.UNDELIVERED, peer=peer)
    assert not refuses(together, 11_000, peer=known)
    assert together.available(known) and together.readiness(known) == 1.0


def test_losses_to_unproven_peers_are_forgiven_at_one_limit_a_day_in_all(together, clock):
    """A base a day for each peer would let the loss grow with the number of peers."""
    peers = strangers(20)
    for peer in peers:
        while not refuses(together, 1_000, peer=peer):
            buy(together, 1_000, State.UNDELIVERED, peer=peer)
    lost = 0
    for _ in range(48):
        clock.now += DAY_S / 48
        for peer in peers:
            while not refuses(together, 100, peer=peer):
                buy(together, 100, State.UNDELIVERED, peer=peer)
                lost += 100
    assert 24_000 <= lost <= 25_000


def test_a_restart_forgives_no_loss_to_unproven_peers_of_today(clock):
    one, two = strangers(2)
    after = PeerTrust(TOGETHER, clock=clock)
    after.load(
        [
            PeerHistory(one, undelivered_msat=9_000, lost_today_msat=9_000),
            PeerHistory(two, undelivered_msat=9_000, lost_today_msat=9_000, unknown={b"u": 1_000}),
        ]
    )
    third = "03" + "ff" * 32
    assert refuses(after, 6_001, peer=third)
    assert not refuses(after, 6_000, peer=third)


def test_a_choice_among_many_unproven_peers_adds_up_their_exposure_once(together, clock, monkeypatch):
    peers = strangers(100)
    for peer in peers:
        buy(together, 10, peer=peer)
    added_up = []
    add_up = together._exposed_to_strangers_msat
    monkeypatch.setattr(together, "_exposed_to_strangers_msat", lambda now: added_up.append(now) or add_up(now))
    assert all(together.readiness(peer) == 1.0 and together.available(peer) for peer in peers)
    assert len(added_up) == 1
    clock.now += 1
    together.readiness(peers[0])
    assert len(added_up) == 2


def test_changed_rules_keep_the_losses_to_unproven_peers(together, clock):
    one, two, three = strangers(3)
    for peer in (one, two):
        buy(together, 10_000, State.UNDELIVERED, peer=peer)
    together.use(replace(TOGETHER, exposure_unproven_msat=22_000))
    assert refuses(together, 2_001, peer=three)
    together.use(replace(TOGETHER, exposure_unproven_msat=0))
    assert not refuses(together, 10_000, peer=three)


# -- history from the journal -----------------------------------------------------------------------


def test_the_history_in_the_journal_survives_a_restart(standings):
    job_id = b"\x77" * 32
    standings.load(
        [
            PeerHistory(
                PEER, delivered_msat=50_000, delivered_count=9, undelivered_msat=2_000, unknown={job_id: 1_500}
            ),
            PeerHistory(OTHER_PEER, failures=3),
        ]
    )
    assert room(standings) == 10_000 + (50_000 - 20_000) // 10 - 2_000 - 1_500
    assert standings.standing(PEER).delivered_count == 9
    assert not standings.available(OTHER_PEER)
    assert set(standings.peers()) == {PEER, OTHER_PEER}
    standings.resolved(PEER, job_id, 1_500, State.NOT_PAID)
    assert room(standings) == 11_000


def test_a_standing_is_the_same_after_a_restart_as_before(clock):
    before, after = PeerTrust(RULES, clock=clock), PeerTrust(RULES, clock=clock)
    for state in (State.DELIVERED, State.UNDELIVERED, State.DELIVERED):
        buy(before, 1_234, state)
    open_ = buy(before, 77, State.UNKNOWN)
    history = PeerHistory(PEER, 2_468, 2, 1_234, {open_.job_id: 77})
    after.load([history])
    assert after.standing(PEER) == before.standing(PEER)


def test_peer_trust_implements_the_exposure_of_the_purchase_service(standings):
    exposure: Exposure = standings
    assert all(callable(getattr(exposure, name)) for name in ("check", "paying", "ended", "released"))


def test_amounts_stay_whole(standings):
    buy(standings, Msat(3), State.DELIVERED)
    standing = standings.standing(PEER)
    assert all(isinstance(msat, int) for msat in (standing.out_msat, standing.undelivered_msat, standing.limit_msat))


# -- changed rules ----------------------------------------------------------------------------------


def test_changed_rules_apply_at_once_and_the_history_stays(standings):
    buy(standings, 4_000, State.DELIVERED)
    buy(standings, 6_000, State.UNKNOWN)
    before = room(standings)
    standings.use(replace(RULES, exposure_base_msat=20_000))
    assert room(standings) == before + 10_000
    assert standings.standing(PEER).out_msat == 6_000
    standings.use(replace(RULES, exposure_base_msat=5_000))
    assert refuses(standings, 1)


def test_losses_forgiven_under_previous_rules_stay_forgiven(standings, clock):
    buy(standings, 8_000, State.UNDELIVERED)
    clock.now += DAY_S / 2
    assert standings.standing(PEER).undelivered_msat == 3_000
    standings.use(replace(RULES, exposure_base_msat=1_000))
    assert standings.standing(PEER).undelivered_msat == 3_000
    clock.now += DAY_S
    assert standings.standing(PEER).undelivered_msat == 2_000


def test_a_breaker_that_is_disabled_releases_all_peers(standings):
    for _ in range(3):
        standings.failed_to_quote(PEER)
    assert not standings.available(PEER)
    standings.use(replace(RULES, breaker_pause_s=1.0))
    assert not standings.available(PEER), "a pause keeps its length"
    standings.use(replace(RULES, breaker_failures=0))
    assert standings.available(PEER)


def test_a_breaker_that_is_set_lower_opens_with_the_next_failure(standings):
    for _ in range(2):
        standings.failed_to_quote(PEER)
    standings.use(replace(RULES, breaker_failures=1))
    assert standings.available(PEER)
    standings.failed_to_quote(PEER)
    assert not standings.available(PEER)
