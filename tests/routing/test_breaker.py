"""A peer that fails again and again is paused for longer and longer, and tried with one job at a time."""

import pytest

from lcp_gateway.routing.breaker import MAX_PAUSE_S, TRIAL_S, Breaker

JOB, OTHER_JOB = b"\x01" * 32, b"\x02" * 32


@pytest.fixture
def breaker():
    return Breaker(failures=3, pause_s=10.0)


def fail_at(breaker, *times):
    for now in times:
        breaker.failed_to_quote(now)


def may_pay(breaker, job_id, now):
    allowed = breaker.would_pay(job_id, now)
    if allowed:
        breaker.hold(job_id, now)
    return allowed


def test_two_failures_are_forgiven_and_the_third_is_not(breaker):
    fail_at(breaker, 0, 1)
    assert breaker.ask(1) and may_pay(breaker, JOB, 1)
    fail_at(breaker, 2)
    assert not breaker.ask(2) and not may_pay(breaker, JOB, 2)
    assert breaker.resting_s(2) == 10


def test_failures_to_quote_and_to_deliver_count_together(breaker):
    fail_at(breaker, 0, 0)
    breaker.failed_to_deliver(0)
    assert not breaker.ask(1)


def test_a_quote_forgets_failed_quotes_and_not_failed_deliveries(breaker):
    breaker.failed_to_deliver(0)
    breaker.failed_to_deliver(0)
    breaker.quoted()
    fail_at(breaker, 0)
    assert not breaker.ask(1)


def test_only_failures_in_a_row_count(breaker):
    for _ in range(5):
        fail_at(breaker, 0, 0)
        breaker.quoted()
        breaker.failed_to_deliver(0)
        breaker.failed_to_deliver(0)
        breaker.delivered()
    assert breaker.ask(0)


def test_after_the_pause_one_asker_at_a_time_may_try(breaker):
    fail_at(breaker, 0, 0, 0)
    assert not breaker.ask(9.9)
    assert breaker.is_on_trial(10)
    assert breaker.ask(10)
    assert not breaker.ask(10)
    assert breaker.ask(10 + TRIAL_S), "the first trial has not ended"


def test_the_job_that_is_tried_keeps_others_out_until_it_ends_however_long_it_takes(breaker):
    fail_at(breaker, 0, 0, 0)
    assert breaker.ask(10)
    assert may_pay(breaker, JOB, 11)
    assert not may_pay(breaker, OTHER_JOB, 12)
    assert may_pay(breaker, JOB, 12), "the same job may be checked twice"
    breaker.paying(JOB)
    assert not breaker.ask(5_000) and not may_pay(breaker, OTHER_JOB, 5_000)
    breaker.ended(JOB)
    assert breaker.ask(5_000)


def test_a_job_that_passed_and_was_never_paid_does_not_block_for_ever(breaker):
    fail_at(breaker, 0, 0, 0)
    assert may_pay(breaker, JOB, 10)
    assert may_pay(breaker, OTHER_JOB, 10 + TRIAL_S)


def test_a_new_try_takes_the_place_of_one_that_was_never_paid(breaker):
    fail_at(breaker, 0, 0, 0)
    assert may_pay(breaker, JOB, 10)
    assert breaker.ask(10 + TRIAL_S)
    assert may_pay(breaker, OTHER_JOB, 10 + TRIAL_S)


def test_a_trial_that_is_delivered_closes_the_breaker(breaker):
    fail_at(breaker, 0, 0, 0)
    assert may_pay(breaker, JOB, 10)
    breaker.paying(JOB)
    breaker.ended(JOB)
    breaker.delivered()
    assert not breaker.is_on_trial(11)
    assert breaker.ask(11) and breaker.ask(11)
    fail_at(breaker, 12, 12)
    assert breaker.ask(12), "counting starts again"
    fail_at(breaker, 12)
    assert breaker.resting_s(12) == 10, "and the first pause applies again"


def test_a_peer_that_failed_to_quote_is_well_again_when_it_quotes(breaker):
    fail_at(breaker, 0, 0, 0)
    breaker.quoted()
    assert breaker.ask(1) and breaker.ask(1)


def test_a_peer_that_failed_to_deliver_is_not_well_when_it_quotes(breaker):
    breaker.failed_to_deliver(0, 3)
    breaker.quoted()
    assert not breaker.ask(1)


def test_each_failed_trial_doubles_the_pause_up_to_ten_minutes(breaker):
    now, pauses = 0.0, []
    breaker.failed_to_deliver(now, 3)
    for _ in range(9):
        pauses.append(breaker.resting_s(now))
        now += pauses[-1]
        assert breaker.ask(now)
        breaker.failed_to_quote(now)
    assert pauses == [10, 20, 40, 80, 160, 320, 600, 600, 600]
    assert MAX_PAUSE_S == 600


def test_jobs_that_began_before_the_pause_and_fail_in_it_do_not_prolong_it(breaker):
    fail_at(breaker, 0, 0, 0, 1, 2, 3, 4, 5)
    assert breaker.resting_s(5) == 5
    assert breaker.ask(10)


def test_zero_failures_turn_it_off():
    breaker = Breaker(failures=0, pause_s=10.0)
    breaker.failed_to_deliver(0, 1_000)
    assert breaker.ask(0) and may_pay(breaker, JOB, 0)
