"""Trust in peers over random histories."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lcp_gateway.purchase.errors import PeerNotTrusted
from lcp_gateway.purchase.states import State
from lcp_gateway.routing.peer_trust import RESERVED_S, PeerTrust
from tests.routing.test_peer_trust import DAY_S, RULES, Clock, asks, buy, refuses
from tests.support.examples import examples
from tests.support.purchases import PEER

PRICES = st.integers(1, 15_000)


class AnyHistory(RuleBasedStateMachine):
    """Purchases in any order and overlap, with time passing; a plain sum checks the exposure."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.standings = PeerTrust(RULES, clock=self.clock)
        self.reserved = {}
        self.paying = {}
        self.unknown = {}
        self.delivered_msat = 0
        self.all_lost_msat = 0

    def pick(self, held, data):
        return held.pop(data.draw(st.sampled_from(sorted(held))))

    def drop_lapsed(self):
        now = self.clock.now
        self.reserved = {k: (q, t) for k, (q, t) in self.reserved.items() if now < t + RESERVED_S}

    def out_msat(self):
        reserved = [quoted for quoted, _ in self.reserved.values()]
        held = [*reserved, *self.paying.values(), *self.unknown.values()]
        return sum(quoted.price_msat for quoted in held)

    @rule(price_msat=PRICES)
    def check(self, price_msat):
        quoted = asks(price_msat)
        before = self.standings.standing(PEER)
        try:
            self.standings.check(quoted)
        except PeerNotTrusted:
            assert self.standings.standing(PEER) == before
            return
        self.reserved[quoted.job_id] = (quoted, self.clock.now)
        standing = self.standings.standing(PEER)
        assert standing.out_msat + standing.undelivered_msat <= standing.limit_msat
        assert not before.resting_s

    @precondition(lambda self: self.reserved)
    @rule(data=st.data(), goes_out=st.booleans())
    def go_on(self, data, goes_out):
        quoted, _ = self.pick(self.reserved, data)
        if goes_out:
            self.standings.paying(quoted)
            self.paying[quoted.job_id] = quoted
        else:
            self.standings.ended(quoted, State.REFUSED)

    @precondition(lambda self: self.paying)
    @rule(
        data=st.data(),
        state=st.sampled_from([State.DELIVERED, State.UNDELIVERED, State.UNKNOWN, State.NOT_PAID, State.DELIVERED]),
    )
    def end(self, data, state):
        quoted = self.pick(self.paying, data)
        self.standings.ended(quoted, state)
        if state is State.UNKNOWN:
            self.unknown[quoted.job_id] = quoted
        self.delivered_msat += quoted.price_msat * (state is State.DELIVERED)
        self.all_lost_msat += quoted.price_msat * (state is State.UNDELIVERED)

    @precondition(lambda self: self.unknown)
    @rule(data=st.data(), was_paid=st.booleans())
    def find_out(self, data, was_paid):
        quoted = self.pick(self.unknown, data)
        self.standings.ended(quoted, State.SETTLED if was_paid else State.NOT_PAID)
        self.all_lost_msat += quoted.price_msat * was_paid

    @rule(works=st.booleans())
    def ask(self, works):
        if self.standings.available(PEER):
            assert not self.standings.standing(PEER).resting_s
            if works:
                self.standings.quoted(PEER)
            else:
                self.standings.failed_to_quote(PEER)

    @rule(seconds=st.sampled_from([1.0, 9.0, 29.0, 31.0, 700.0, 20_000.0]))
    def wait(self, seconds):
        self.clock.now += seconds
        self.drop_lapsed()

    @invariant()
    def the_sums_are_right(self):
        standing = self.standings.standing(PEER)
        assert standing.out_msat == self.out_msat()
        assert standing.delivered_msat == self.delivered_msat
        earned_msat = max(0, self.delivered_msat - 10 * standing.undelivered_msat)
        assert standing.limit_msat == 10_000 + earned_msat // 10
        assert 0 <= standing.undelivered_msat <= self.all_lost_msat
        assert 0 <= standing.resting_s <= 600

    def teardown(self):
        """After any history: once nothing is open, an idle peer may be asked again."""
        for quoted in self.paying.values():
            self.standings.ended(quoted, State.NOT_PAID)
        for quoted in self.unknown.values():
            self.standings.ended(quoted, State.NOT_PAID)
        days = self.all_lost_msat // 10_000 + 1
        self.clock.now += days * DAY_S
        assert self.standings.available(PEER)
        buy(self.standings, 10_000, State.DELIVERED)
        for _ in range(3):
            buy(self.standings, 1, State.DELIVERED)
            assert self.standings.available(PEER)


AnyHistory.TestCase.settings = settings(
    max_examples=examples(0.8), stateful_step_count=40, deadline=None, database=None
)
test_no_history_breaks_the_rules = AnyHistory.TestCase


@given(prices=st.lists(PRICES, max_size=60), deliver=st.lists(st.booleans(), min_size=60, max_size=60))
@settings(deadline=None, database=None)
def test_a_price_passes_exactly_when_base_and_earned_share_cover_it_and_all_losses(prices, deliver):
    rules = replace(RULES, breaker_failures=0, exposure_share_ppm=500_000)
    standings = PeerTrust(rules, clock=Clock())
    lost = delivered = 0
    for price_msat, delivers in zip(prices, deliver, strict=False):
        covered = 10_000 + max(0, delivered - 10 * lost) // 2
        assert refuses(standings, price_msat) == (lost + price_msat > covered)
        if lost + price_msat <= covered:
            buy(standings, price_msat, State.DELIVERED if delivers else State.UNDELIVERED)
            delivered += price_msat * delivers
            lost += price_msat * (not delivers)
