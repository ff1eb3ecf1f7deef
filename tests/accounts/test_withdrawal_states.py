"""The state table of withdrawals: one way into paying, evidence out of unknown, and no way back."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.accounts.withdrawal_states import (
    OPEN_STATES,
    TRANSITIONS,
    IllegalStep,
    WithdrawalEvent,
    WithdrawalState,
    step,
)
from tests.support.cases import each_case

PAGE = Path(__file__).parents[2] / "docs" / "withdrawals.md"


def test_every_state_has_a_row_and_ends_hold_nothing():
    assert set(TRANSITIONS) == set(WithdrawalState)
    assert {state for state, row in TRANSITIONS.items() if row} == {*OPEN_STATES, WithdrawalState.REQUESTED}


def test_unknown_is_left_only_by_evidence():
    assert set(TRANSITIONS[WithdrawalState.UNKNOWN]) == {WithdrawalEvent.SETTLE, WithdrawalEvent.FAIL}
    assert set(TRANSITIONS[WithdrawalState.PAYING]) == {
        WithdrawalEvent.SETTLE,
        WithdrawalEvent.FAIL,
        WithdrawalEvent.LOSE_SIGHT,
    }


@given(st.lists(st.sampled_from(WithdrawalEvent), max_size=12))
def test_whatever_happens_it_is_paid_at_most_once(events):
    state, payments = WithdrawalState.REQUESTED, 0
    for event in events:
        try:
            state = step(state, event)
        except IllegalStep:
            continue
        payments += event in {WithdrawalEvent.PAY, WithdrawalEvent.TRANSFER}
    assert payments <= 1
    assert payments == 1 or state is not WithdrawalState.SETTLED


@each_case("state", [it for it in WithdrawalState if not TRANSITIONS[it]])
@each_case("event", list(WithdrawalEvent))
def test_an_end_is_an_end(state, event):
    with pytest.raises(IllegalStep, match=state.value):
        step(state, event)


def test_the_documented_diagram_is_the_table():
    drawn = PAGE.read_text().split("<!-- states:begin -->")[1].split("<!-- states:end -->")[0]
    arrows = [line.strip() for line in drawn.splitlines() if "-->" in line and "[*]" not in line]
    table = [f"{state} --> {target}: {event}" for state, row in TRANSITIONS.items() for event, target in row.items()]
    assert sorted(arrows) == sorted(table)
