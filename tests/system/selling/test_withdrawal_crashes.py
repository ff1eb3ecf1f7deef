"""kill -9 at random moments of gateways that pay withdrawals: lnd and the ledger agree to the msat.

The short version of `python -m tests.soak.withdrawals`, which is the one to run for a hundred kills. `LCP_TEST_SEED`
repeats the moments of another run.
"""

import os
import random

import pytest

from tests.soak.withdrawals import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 5
SEED = os.environ.get("LCP_TEST_SEED") or str(random.randrange(10**6))


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_nothing_is_paid_twice_or_lost_whenever_a_gateway_is_killed(request, tmp_path, database):
    if database == "sqlite":
        done = run(kills=KILLS, journal=str(tmp_path / "journal.db"), folder=tmp_path, seed=SEED)
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            done = run(kills=KILLS, journal=url, folder=tmp_path, seed=SEED)
    reported = "\n".join([f"seed {SEED}", *done.lines()])
    print(reported)
    assert not done.discrepancies, reported
    assert done.counts["gateways killed"] == KILLS
    assert done.counts["withdrawals settled"] and done.counts["withdrawals failed"], reported
