from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lcp_gateway.purchase.states import TRANSITIONS, VERDICTS, IllegalTransition, PurchaseEvent, State, Verdict, step
from tests.support.cases import each_case

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_every_state_has_a_row_and_a_verdict():
    assert set(TRANSITIONS) == set(State) == set(VERDICTS)


def test_only_a_quoted_purchase_may_be_paid():
    assert [state for state in State if PurchaseEvent.PAY in TRANSITIONS[state]] == [State.QUOTED]


def test_no_row_leads_back_to_quoted_or_paying():
    targets = {target for state, row in TRANSITIONS.items() for target in row.values() if state != "quoted"}
    assert State.QUOTED not in targets
    assert State.PAYING not in targets


def test_unknown_is_left_only_by_evidence():
    assert TRANSITIONS[State.UNKNOWN] == {
        PurchaseEvent.FAIL_PAYMENT: State.NOT_PAID,
        PurchaseEvent.SETTLE: State.SETTLED,
        PurchaseEvent.FAIL_DELIVERY: State.UNDELIVERED,
    }


@given(st.lists(st.sampled_from(PurchaseEvent), max_size=12))
def test_whatever_happens_it_is_paid_at_most_once_and_money_never_comes_back(events):
    state = State.QUOTED
    payments = 0
    seen_settled = False
    for event in events:
        try:
            state = step(state, event)
        except IllegalTransition:
            continue
        payments += event is PurchaseEvent.PAY
        if seen_settled:
            assert VERDICTS[state] is Verdict.SETTLED
        seen_settled |= VERDICTS[state] is Verdict.SETTLED
    assert payments <= 1


@each_case("state", [s for s in State if not TRANSITIONS[s]])
@each_case("event", list(PurchaseEvent))
def test_an_end_is_an_end(state, event):
    with pytest.raises(IllegalTransition, match=state.value):
        step(state, event)


def test_the_documented_diagram_is_the_table():
    drawn = PAGE.read_text().split("<!-- states:begin -->")[1].split("<!-- states:end -->")[0]
    arrows = [line.strip() for line in drawn.splitlines() if "-->" in line and "[*]" not in line]
    table = [f"{state} --> {target}: {event}" for state, row in TRANSITIONS.items() for event, target in row.items()]
    assert sorted(arrows) == sorted(table)
