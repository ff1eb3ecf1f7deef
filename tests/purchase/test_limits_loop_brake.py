import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase import limits as brake_module
from lcp_gateway.purchase.limits import LoopBrake, LoopDetected
from tests.support.scripted_peers import OTHER_BODY, ordered


class Requests:
    def __init__(self, per_minute) -> None:
        self.at = 1_000.0
        self.brake = LoopBrake(per_minute, lambda: self.at)

    def passes(self, order=None) -> bool:
        try:
            self.brake.check(order or ordered())
        except LoopDetected:
            return False
        return True


def test_without_a_number_it_is_off():
    requests = Requests(0)
    assert all(requests.passes() for _ in range(1_000))


def test_the_same_body_passes_so_many_times_a_minute():
    requests = Requests(3)
    assert [requests.passes() for _ in range(5)] == [True] * 3 + [False] * 2
    requests.at += 59.9
    assert not requests.passes()
    requests.at += 0.1
    assert [requests.passes() for _ in range(4)] == [True] * 3 + [False]


def test_it_says_how_long_to_wait():
    requests = Requests(1)
    requests.passes()
    requests.at += 20
    with pytest.raises(LoopDetected) as caught:
        requests.brake.check(ordered())
    assert caught.value.wait_s == pytest.approx(40)
    requests.at += caught.value.wait_s
    assert requests.passes()


def test_other_bodies_and_other_credentials_are_counted_apart():
    requests = Requests(1)
    assert requests.passes() and not requests.passes()
    assert requests.passes(ordered(OTHER_BODY))
    assert requests.passes(ordered(key_id="another"))


def test_a_refused_request_does_not_count():
    requests = Requests(1)
    assert requests.passes()
    for _ in range(6):
        requests.at += 9.9
        assert not requests.passes()
    requests.at += 0.6
    assert requests.passes()


def test_it_remembers_a_bounded_number_of_bodies(monkeypatch):
    monkeypatch.setattr(brake_module, "_MAX_BODIES", 10)
    requests = Requests(1)
    for at in range(50):
        assert requests.passes(ordered(str(at).encode()))
    assert len(requests.brake._seen) == 10


@given(per_minute=st.integers(1, 5), gaps=st.lists(st.floats(0, 40, allow_nan=False), min_size=1, max_size=40))
def test_in_no_minute_do_more_pass_than_allowed(per_minute, gaps):
    requests = Requests(per_minute)
    passed = []
    for gap in gaps:
        requests.at += gap
        if requests.passes():
            passed.append(requests.at)
    for start in passed:
        assert sum(start <= at < start + 60.0 for at in passed) <= per_minute


def test_a_changed_limit_counts_recent_requests():
    requests = Requests(3)
    assert all(requests.passes() for _ in range(3))
    requests.brake.use(5)
    assert [requests.passes() for _ in range(3)] == [True, True, False]
    requests.brake.use(2)
    assert not requests.passes()
    requests.brake.use(0)
    assert requests.passes()
    requests.brake.use(1)
    assert [requests.passes() for _ in range(2)] == [True, False]
