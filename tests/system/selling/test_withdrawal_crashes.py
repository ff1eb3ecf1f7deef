"""kill -9 at random moments of gateways that pay withdrawals: lnd and the ledger agree to the msat.

The short version of `python -m tests.soak.withdrawals`, which is the one to run for a hundred kills, and on SQLite.
`LCP_TEST_SEED` repeats the moments of another run.
"""

import os
import random

import pytest

from tests.soak.withdrawals import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 3
SEED = os.environ.get("LCP_TEST_SEED") or str(random.randrange(10**6))


def test_nothing_is_paid_twice_or_lost_whenever_a_gateway_is_killed(postgres, tmp_path):
    with postgres.fresh_database() as url:
        done = run(kills=KILLS, journal=url, folder=tmp_path, seed=SEED)
    reported = "\n".join([f"seed {SEED}", *done.lines()])
    print(reported)
    assert not done.discrepancies, reported
    assert done.counts["gateways killed"] == KILLS
    # Which ends they have is left to chance and to the machine.
    assert done.counts["withdrawals settled"] + done.counts["withdrawals failed"], reported
