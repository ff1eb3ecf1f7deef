import math

from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.accounts.limits.rate_counters import WINDOW_S, MemoryWindows, RateWindow


class Clock:
    def __init__(self, at: float = 600_000.0) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at


def counted(window: RateWindow, in_s: float) -> float:
    """What counts after a time, if nothing is added: the definition, in plain steps."""
    turns_in_s = window.this_left_s - WINDOW_S
    if in_s < turns_in_s:
        return window.last * max(0.0, window.last_left_s - in_s) / WINDOW_S + window.this
    return window.this * max(0.0, WINDOW_S - (in_s - turns_in_s)) / WINDOW_S


windows = st.builds(
    lambda last, this, left_s: RateWindow(last, left_s, this, left_s + WINDOW_S),
    st.integers(0, 500),
    st.integers(0, 500),
    st.floats(0.01, WINDOW_S),
)


@given(windows, st.integers(1, 300), st.integers(0, 300))
def test_an_amount_fits_after_the_wait_and_not_before(window, limit, amount):
    amount = min(amount, limit)

    wait_s = window.wait_s(amount, limit)

    assert math.floor(counted(window, wait_s) + 1e-9) + amount <= limit
    if wait_s > 0.01:
        assert math.floor(counted(window, wait_s - 0.01) + 1e-9) + amount >= limit
        assert window.used + amount > limit


@given(windows, st.integers(1, 300))
def test_nothing_counts_after_the_reset(window, limit):
    assert math.floor(counted(window, window.reset_s(limit)) + 1e-9) == 0


async def test_a_window_slides_and_runs_out():
    clock = Clock()
    kept = MemoryWindows(clock)

    assert await kept.acquire_sliding_window_entry("a", 10, 60, 10)
    assert not await kept.acquire_sliding_window_entry("a", 10, 60, 1)
    clock.at += 60 + 30
    assert RateWindow(*await kept.get_sliding_window("a", 60)).used == 5
    assert not await kept.acquire_sliding_window_entry("a", 10, 60, 6)
    assert await kept.acquire_sliding_window_entry("a", 10, 60, 5)
    clock.at += 120
    assert RateWindow(*await kept.get_sliding_window("a", 60)).used == 0


async def test_windows_that_ran_out_are_dropped_as_others_are_used():
    clock = Clock()
    kept = MemoryWindows(clock)
    for number in range(1_000):
        await kept.acquire_sliding_window_entry(f"old{number}", 10, 60, 1)
    clock.at += 130

    for number in range(600):
        await kept.acquire_sliding_window_entry(f"new{number}", 10, 60, 1)

    assert kept.count == 600


@given(st.lists(st.tuples(st.floats(0, 50), st.integers(1, 6)), max_size=60))
async def test_no_sixty_seconds_hold_much_more_than_the_limit(steps):
    """The window is an estimate that takes the last minute's requests for evenly spread: at worst it is twice the limit."""
    clock = Clock()
    kept = MemoryWindows(clock)
    hits = []
    for pause_s, amount in steps:
        clock.at += pause_s
        if await kept.acquire_sliding_window_entry("a", 10, 60, amount):
            hits.append((clock.at, amount))

    for at, _ in hits:
        assert sum(amount for then, amount in hits if at - 60 < then <= at) <= 20


async def test_the_minute_before_counts_on_after_another_window_was_hit():
    """Part E: dropping what ran out may not take what ran out only in part."""
    clock = Clock()
    kept = MemoryWindows(clock)
    assert await kept.acquire_sliding_window_entry("a", 10, 60, 10)
    clock.at += 61
    assert await kept.acquire_sliding_window_entry("b", 10, 60, 1)

    assert not await kept.acquire_sliding_window_entry("a", 10, 60, 2)
    assert kept.count == 2
