import pytest

from lcp_gateway.store.absence import Absences

ONE = "a" * 16
OTHER = "b" * 16


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def absences(clock):
    return Absences(10.0, clock)


def looks(absences, clock, seconds, *, each=2.0, owner=ONE, asked=True) -> list[bool]:
    found = []
    for _ in range(int(seconds / each)):
        clock.now += each
        found.append(absences.found_free(owner, asked=asked))
    return found


def test_an_owner_is_gone_when_its_lock_was_free_for_ten_seconds(absences, clock):
    """A3: one look was enough, and a live gateway looked dead between the loss of a session and its next write."""
    assert not absences.found_free(ONE)
    assert looks(absences, clock, 12) == [False] * 4 + [True] * 2


def test_a_look_that_finds_it_held_begins_again(absences, clock):
    absences.found_free(ONE)
    looks(absences, clock, 8)
    absences.found_held(ONE)
    assert not absences.is_watched(ONE)
    clock.now += 4
    assert not absences.found_free(ONE)
    assert looks(absences, clock, 10) == [False] * 4 + [True]


def test_two_looks_with_nothing_in_between_prove_nothing(absences, clock):
    """It may have had its lock meanwhile, or have had no server to take it from."""
    absences.found_free(ONE)
    clock.now += 60
    assert not absences.found_free(ONE)
    assert looks(absences, clock, 10)[-1]


def test_a_session_that_was_lost_begins_all_again(absences, clock):
    for owner in (ONE, OTHER):
        absences.found_free(owner)
        looks(absences, clock, 4, owner=owner)
    absences.begin_again()
    assert looks(absences, clock, 10) == [False] * 4 + [True]


def test_owners_are_looked_at_for_as_long_as_they_are_asked_for(absences, clock):
    """A client asks for its background job every half a minute, and its owner is known to be gone by then."""
    absences.found_free(ONE)
    for _ in range(15):
        clock.now += 2
        for owner in absences.to_look_at():
            absences.found_free(owner, asked=False)
    assert absences.found_free(ONE)
    looks(absences, clock, 122, asked=False)
    assert not absences.to_look_at()


def test_one_owner_does_not_wait_for_another(absences, clock):
    absences.found_free(ONE)
    looks(absences, clock, 6)
    absences.found_free(OTHER)
    assert looks(absences, clock, 4) == [False, True]
    assert not absences.found_free(OTHER)


def test_what_is_watched_is_bounded(absences, clock):
    for number in range(1_000):
        clock.now += 0.01
        absences.found_free(f"{number:016x}")
    watched = absences.to_look_at()
    assert len(watched) <= 256 and f"{999:016x}" in watched
