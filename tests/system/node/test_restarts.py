"""A job outlives every process that it depends on, at every stage: what is paid is delivered, and paid once.

Nodes are killed, lnds stopped or killed; what was paid is what the lnds' own records say.
"""

import pytest

from tests.support.lcp_jobs import STAGES, VICTIMS, Job, end_and_start, is_unpaid, let_everything_go, money_of
from tests.support.lcp_processes import MODEL, lcp_world
from tests.support.lnd_standin import SETTLED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with lcp_world(tmp_path_factory.mktemp("lcp")) as world:
        yield world


@pytest.fixture
def world(running):
    """Both nodes at work, and nothing held."""
    running.until_ready()
    yield running
    running.network.run(let_everything_go(running))


@pytest.mark.parametrize("victims", VICTIMS, ids="+".join)
@pytest.mark.parametrize("stage", STAGES)
def test_a_job_outlives_its_processes(world, stage, victims):
    job = Job(world, stage)
    if stage == "paid":
        end_and_start(world, victims, job.go_on)
    else:
        end_and_start(world, victims, lambda: None)
        job.go_on()
    world.until_ready()
    purchase = job.end()
    if purchase is None:
        # A request is kept by neither side before its quote.
        assert stage == "asked"
    elif purchase.delivered:
        assert bytes(purchase.body) == world.backend.result(MODEL, stream=True)
        assert money_of(world, purchase) == ("succeeded", SETTLED)
    elif stage == "sending" and "seller" in victims:
        # Part of the result is with the client, and the backend's is lost: another run's cannot be joined to it.
        assert "code=7: backend unavailable: interrupted by a restart" in purchase.error.details()
        assert money_of(world, purchase) == ("succeeded", SETTLED)
    elif stage == "paid" and "seller_lnd" in victims:
        assert "FAILURE_REASON_NO_ROUTE" in purchase.error.details()
        assert is_unpaid(world, purchase, "failed")
    else:
        # A buyer keeps no quote that is not being paid, and a seller no longer than its connection one that it did not send.
        assert stage == "asked" or (stage == "quoted" and "buyer" in victims), purchase.error
        assert is_unpaid(world, purchase, "none")
    # And the next job is a job like any other.
    assert world.accept(world.quote()).wait().delivered
