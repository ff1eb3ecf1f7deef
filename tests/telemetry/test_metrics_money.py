"""Metrics of payments: open amounts, remaining budgets, and no values for unknown amounts."""

import pytest

from lcp_gateway.telemetry.metric_table import BY_NAME, MISMATCHES, PREFIX, RECONCILED, REPEATS
from lcp_gateway.telemetry.metrics import MAX_PEERS, Metrics

ALICE, BOB = "02" + "a" * 64, "03" + "b" * 64


@pytest.fixture
def metrics(clock):
    metrics = Metrics(clock=clock)
    metrics.set_known({"echo-1"}, {ALICE})
    return metrics


def exposed(metrics, name):
    """Return the samples of a family as a scrape sees them, by their labels' text."""
    found = {}
    for line in metrics.render()[0].decode().splitlines():
        series, _, number = line.rpartition(" ")
        bare, _, labels = series.partition("{")
        if bare == PREFIX + name:
            found[labels.rstrip("}")] = float(number)
    return found


def test_a_false_quote_is_counted_for_its_peer_with_what_does_not_fit(metrics, value):
    metrics.mismatch(ALICE, "amount")
    metrics.mismatch(ALICE, "amount")
    metrics.mismatch(ALICE, "payee")
    assert value("quote_mismatches_total", peer=ALICE, mismatch="amount") == 2
    assert value("quote_mismatches_total", peer=ALICE, mismatch="payee") == 1


@pytest.mark.parametrize(
    ("count", "name", "label", "words"),
    [
        (Metrics.joined, "joined_total", "how", REPEATS),
        (Metrics.reconciled, "reconciled_total", "result", RECONCILED),
        (
            lambda metrics, word: metrics.mismatch("unknown peer", word),
            "quote_mismatches_total",
            "mismatch",
            MISMATCHES,
        ),
    ],
    ids=["joined", "reconciled", "mismatch"],
)
def test_words_are_counted_from_zero_and_unknown_ones_as_other(metrics, value, count, name, label, words):
    peer = {"peer": "other"} if "peer" in BY_NAME[name].labels else {}
    for word in (*words, "other"):
        assert value(name, **peer, **{label: word}) == 0
    for word in (*words, "unheard of", "\ud800"):
        count(metrics, word)
    for word in words:
        assert value(name, **peer, **{label: word}) == 1
    assert value(name, **peer, **{label: "other"}) == 2


def test_mismatches_of_a_peer_begin_at_zero_when_it_is_first_seen(metrics, value):
    assert value("quote_mismatches_total", peer=ALICE, mismatch="signature") == 0
    assert value("quote_mismatches_total", peer=BOB, mismatch="signature") is None
    metrics.set_known((), {BOB})
    assert value("quote_mismatches_total", peer=BOB, mismatch="signature") == 0


def test_what_choosing_saves_adds_up_and_never_goes_down(metrics, value):
    metrics.runner_up_saving(1_500)
    metrics.runner_up_saving(0)
    metrics.runner_up_saving(-900)
    assert value("runner_up_saving_msat_total") == 1_500


def test_a_commit_is_timed_with_its_entries(metrics, value):
    metrics.journal_commit(64, 0.0007)
    metrics.journal_commit(1, 0.02)
    assert value("journal_entries_total") == 65
    assert value("journal_commit_duration_seconds_count") == 2
    assert value("journal_commit_duration_seconds_bucket", le="0.001") == 1


def test_problems_of_the_journal_appear_and_disappear(metrics, value):
    assert value("journal_trouble") == 0
    troubles = [True]
    metrics.watch_journal(lambda: bool(troubles))
    assert value("journal_trouble") == 1
    troubles.clear()
    assert value("journal_trouble") == 0


def test_answers_that_are_held_are_counted_in_bytes(metrics, value):
    metrics.answers_held(12_345)
    assert value("answers_held_bytes") == 12_345


def test_a_budget_has_its_limit_and_its_rest(metrics):
    metrics.budget("day", 1_000, 400)
    metrics.budget("month", 30_000, 40_000)
    assert exposed(metrics, "budget_limit_msat") == {'period="day"': 1_000, 'period="month"': 30_000}
    assert exposed(metrics, "budget_left_msat") == {'period="day"': 600, 'period="month"': 0}


def test_a_period_without_a_budget_is_absent(metrics):
    metrics.budget("hour", 0, 77)
    assert exposed(metrics, "budget_limit_msat") == exposed(metrics, "budget_left_msat") == {}


def test_unknown_payments_are_reported_with_a_growing_age(metrics, clock):
    metrics.outstanding(57_000, 2, 30.0)
    clock.now += 12
    assert exposed(metrics, "outstanding_unknown_msat") == {"": 57_000}
    assert exposed(metrics, "outstanding_unknown_purchases") == {"": 2}
    assert exposed(metrics, "oldest_unknown_age_seconds") == {"": 42}
    metrics.outstanding(0, 0, 0.0)
    clock.now += 12
    assert exposed(metrics, "outstanding_unknown_purchases") == {"": 0}
    assert exposed(metrics, "oldest_unknown_age_seconds") == {"": 0}


@pytest.mark.parametrize(
    "name",
    [
        "outstanding_unknown_msat",
        "outstanding_unknown_purchases",
        "oldest_unknown_age_seconds",
        "lnd_up",
        "lnd_synced",
        "lnd_local_balance_msat",
        "lnd_channels",
        "budget_limit_msat",
        "peer_undelivered_msat",
    ],
)
def test_a_value_that_was_never_reported_is_absent_and_not_zero(metrics, name):
    assert exposed(metrics, name) == {}


def test_lnds_balance_and_channels_are_set(metrics):
    metrics.lnd(True, False, 5_000_000, 3, 1)
    assert exposed(metrics, "lnd_up") == {"": 1}
    assert not exposed(metrics, "lnd_fees_missing")
    metrics.fees_missing(3)
    assert exposed(metrics, "lnd_fees_missing") == {"": 3}
    assert exposed(metrics, "lnd_synced") == {"": 0}
    assert exposed(metrics, "lnd_local_balance_msat") == {"": 5_000_000}
    assert exposed(metrics, "lnd_channels") == {'state="active"': 3, 'state="inactive"': 1}


def test_an_lnd_that_is_away_has_no_balance_rather_than_an_empty_one(metrics):
    metrics.lnd(True, True, 5_000_000, 3, 1)
    metrics.lnd(False, False, 0, 0, 0)
    assert exposed(metrics, "lnd_up") == {"": 0}
    for name in ("lnd_synced", "lnd_local_balance_msat", "lnd_channels"):
        assert exposed(metrics, name) == {}
    metrics.lnd(True, True, 4_000_000, 3, 1)
    assert exposed(metrics, "lnd_local_balance_msat") == {"": 4_000_000}


def test_a_peer_that_only_the_journal_knows_has_its_own_series(metrics, value):
    metrics.peer_undelivered_msat(BOB, 7_000)
    metrics.peer_undelivered_msat(BOB, 9_000)
    assert value("peer_undelivered_msat", peer=BOB) == 9_000
    assert value("payments_total", outcome="settled", peer=BOB) == 0


def test_peers_beyond_the_limit_are_summed_up_as_other(metrics, value):
    for number in range(MAX_PEERS - 1):
        metrics.peer_undelivered_msat(f"{number:066x}", 1)
    for peer, msat in ((BOB, 5), ("x" * 66, 100), (BOB, 7)):
        metrics.peer_undelivered_msat(peer, msat)
    assert value("peer_undelivered_msat", peer="other") == 107
    assert len(exposed(metrics, "peer_undelivered_msat")) == MAX_PEERS
