"""A seller whose invoices hold the payment takes it with the first byte of the result, and gives it back where there is none."""

import pytest

from tests.support.lcp_jobs import Job, end_and_start, let_everything_go, money_of
from tests.support.lcp_processes import MODEL, lcp_world
from tests.support.lnd_network import ACCEPTED
from tests.support.lnd_standin import CANCELED, SETTLED
from tests.support.node_thread import eventually


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with lcp_world(tmp_path_factory.mktemp("lcp"), hold=True) as world:
        yield world


@pytest.fixture
def world(running):
    """Both nodes at work, and nothing held."""
    running.until_ready()
    yield running
    running.network.run(let_everything_go(running))


def state_of(world, job):
    return world.seller_lnd.invoice(job.purchase.payment_hash).state


def test_a_payment_waits_until_the_result_begins(world):
    job = Job(world, "running")
    assert state_of(world, job) == ACCEPTED
    job.go_on()
    assert job.end().delivered
    assert money_of(world, job.purchase) == ("succeeded", SETTLED)


def test_a_backend_that_fails_costs_the_buyer_nothing(world):
    job = Job(world, "running")
    world.backend.fail_next()
    job.go_on()
    purchase = job.end()
    assert "FAILURE_REASON_INCORRECT_PAYMENT_DETAILS" in purchase.error.details()
    assert money_of(world, purchase) == ("failed", CANCELED)


@pytest.mark.parametrize("victims", [("buyer",), ("seller",), ("buyer_lnd",), ("seller_lnd",)], ids="+".join)
@pytest.mark.parametrize("stage", ["paying", "running"])
def test_a_held_payment_outlives_the_processes(world, stage, victims):
    job = Job(world, stage)
    end_and_start(world, victims, lambda: None)
    job.go_on()
    world.until_ready()
    purchase = job.end()
    assert purchase.delivered, purchase.error
    assert bytes(purchase.body) == world.backend.result(MODEL, stream=True)
    assert money_of(world, purchase) == ("succeeded", SETTLED)


def test_a_job_that_the_caller_cancels_while_the_payment_is_held_gives_it_back(world):
    job = Job(world, "running")
    world.cancel(job.terms)
    eventually(lambda: state_of(world, job) == CANCELED)
    job.end()
    assert money_of(world, job.purchase) == ("failed", CANCELED)
