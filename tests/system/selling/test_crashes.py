"""kill -9 at random moments of a gateway that sells: the books agree with a reference model to the msat.

The short version of `python -m tests.soak.crashes`, which is the one to run for a hundred kills, and on PostgreSQL.
`LCP_TEST_SEED` repeats the moments of another run.
"""

import os
import random

import pytest

from tests.soak.crashes import run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 4
SEED = os.environ.get("LCP_TEST_SEED") or str(random.randrange(10**6))


def test_customers_are_charged_for_what_they_got_whenever_the_gateway_is_killed(tmp_path):
    done = run(kills=KILLS, journal=str(tmp_path / "journal.db"), folder=tmp_path, seed=SEED)
    reported = "\n".join([f"seed {SEED}", *done.lines()])
    print(reported)
    assert not done.verdict.discrepancies, reported
    assert done.kills.total() == KILLS
    # Which ends they have is left to chance and to the machine.
    assert done.verdict.counts["paid"], reported
