from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.node.lcp.replay import ReplayWindow, is_expired

JOB, ID = b"j" * 32, b"m" * 32


def test_a_message_is_new_once_for_each_peer_and_job():
    window = ReplayWindow()

    assert window.is_new(100, "a", JOB, ID, 400)
    assert not window.is_new(400, "a", JOB, ID, 400)
    assert window.is_new(400, "b", JOB, ID, 500)
    assert window.is_new(400, "a", b"k" * 32, ID, 500)


def test_a_message_is_valid_in_the_second_of_its_expiry_and_remembered_through_it():
    window = ReplayWindow()

    assert not is_expired(400, 400) and is_expired(401, 400)
    assert window.is_new(400, "a", JOB, ID, 400)
    assert not window.is_new(400, "a", JOB, ID, 400)
    assert window.is_new(401, "a", JOB, ID, 401)


def test_a_message_that_lives_longer_is_remembered_for_ten_minutes():
    window = ReplayWindow()
    window.is_new(100, "a", JOB, ID, 10_000)

    assert not window.is_new(700, "a", JOB, ID, 10_000)
    assert window.is_new(701, "a", JOB, ID, 10_000)


def test_the_first_to_expire_is_forgotten_for_a_new_one():
    window = ReplayWindow(max_entries=2)
    window.is_new(100, "late", JOB, ID, 500)
    window.is_new(100, "soon", JOB, ID, 300)
    window.is_new(100, "later", JOB, ID, 600)

    assert len(window) == 2
    assert not window.is_new(100, "late", JOB, ID, 500)
    assert not window.is_new(100, "later", JOB, ID, 600)
    assert window.is_new(100, "soon", JOB, ID, 550)


@given(
    st.lists(st.tuples(st.integers(0, 40), st.sampled_from("ab"), st.integers(0, 3), st.integers(0, 2000)), max_size=60)
)
def test_what_is_taken_twice_was_no_longer_remembered(steps):
    window, now, taken = ReplayWindow(max_entries=1000), 0, {}
    for later, peer, number, life in steps:
        now += later * 20
        key = (peer, JOB, bytes([number]))
        if window.is_new(now, *key, now + life):
            assert taken.get(key, -1) < now
            taken[key] = min(now + life, now + 600)
        else:
            assert taken[key] >= now
        assert len(window) == sum(until >= now for until in taken.values())
