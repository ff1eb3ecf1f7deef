from datetime import timedelta

import pytest

from lcp_gateway.purchase.states import State
from lcp_gateway.store.bought import state_of_request
from tests.store.journals import NOW, intent, job, written


def of(number, request_id="req_x", key_id="key_1", at=NOW):
    return intent(number, request_id=request_id, key_id=key_id, at=at)


async def test_a_request_that_paid_nothing_is_not_known(database):
    assert await state_of_request(database, "key_1", "req_x", NOW) is None


@pytest.mark.parametrize(
    "states",
    [
        (),
        (State.UNKNOWN,),
        (State.SETTLED,),
        (State.SETTLED, State.DELIVERED),
        (State.SETTLED, State.UNDELIVERED),
        (State.NOT_PAID,),
    ],
)
async def test_a_request_stands_where_its_purchase_does(database, journal, states):
    await journal.intend(of(1))
    for state in states:
        journal.note(job(1), state, NOW)
    await written(journal)
    stands = states[-1] if states else State.PAYING
    expected = None if stands is State.NOT_PAID else stands
    assert await state_of_request(database, "key_1", "req_x", NOW) is expected


async def test_only_what_the_same_key_paid_for_the_same_request_since_then_counts(
    database, journal
):
    await journal.intend(of(1, request_id="req_y"))
    await journal.intend(of(2, key_id="key_2"))
    await journal.intend(of(3, at=NOW - timedelta(microseconds=1)))
    assert await state_of_request(database, "key_1", "req_x", NOW) is None
    await journal.intend(of(4))
    assert await state_of_request(database, "key_1", "req_x", NOW) is State.PAYING


async def test_a_node_that_did_not_do_it_does_not_hide_who_did_after_it(database, journal):
    await journal.intend(of(1))
    journal.note(job(1), State.NOT_PAID, NOW)
    await journal.intend(of(2, at=NOW + timedelta(seconds=1)))
    await written(journal)
    assert await state_of_request(database, "key_1", "req_x", NOW) is State.PAYING
