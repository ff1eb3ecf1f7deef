"""Nodes whose connection drops, and whose lnd pays badly, slowly or without an answer: what the client is told is true."""

import json
import signal

import grpc
import pytest

from tests.support.gateway import run_command
from tests.support.lcp_jobs import Job, is_unpaid, let_everything_go, money_of
from tests.support.lcp_processes import MODEL, lcp_world
from tests.support.lnd_standin import SETTLED, Trouble
from tests.support.node_thread import eventually

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    with lcp_world(tmp_path_factory.mktemp("lcp")) as world:
        yield world


@pytest.fixture
def world(running):
    """Both nodes at work, and nothing held."""
    for daemon in (running.buyer, running.seller):
        if daemon.process.poll() is not None:
            restart(daemon)
    running.until_ready()
    yield running
    running.network.run(let_everything_go(running))
    for lnd in (running.buyer_lnd, running.seller_lnd):
        lnd.troubles.clear()


async def disconnect(world):
    world.network.disconnect(world.buyer_lnd, world.seller_lnd)


async def connect(world):
    world.network.connect(world.buyer_lnd, world.seller_lnd)


@pytest.mark.parametrize("stage", ["quoted", "paying", "paid", "running", "sending"])
def test_a_job_outlives_the_connection_of_its_peers(world, stage):
    job = Job(world, stage)
    world.network.run(disconnect(world))
    eventually(lambda: not world.is_ready())
    if stage == "paid":
        job.go_on()
        eventually(lambda: world.seller_lnd.invoice(job.purchase.payment_hash).state == SETTLED)
    world.network.run(connect(world))
    job.go_on()
    world.until_ready()
    purchase = job.end()
    assert purchase.delivered, purchase.error
    assert bytes(purchase.body) == world.backend.result(MODEL, stream=True)
    assert money_of(world, purchase) == ("succeeded", SETTLED)


def test_a_connection_that_drops_while_a_peer_quotes_costs_nothing(world):
    job = Job(world, "asked")
    world.network.run(disconnect(world))
    eventually(lambda: not world.is_ready())
    world.network.run(connect(world))
    job.go_on()
    job.asking.join(60)
    assert not job.asking.is_alive()
    if job.terms is not None:
        assert world.accept(job.terms).wait().delivered


def test_a_payment_without_a_route_is_said_to_be_none(world):
    world.buyer_lnd.payments_go = lambda _hash: "no_route"
    purchase = world.accept(world.quote()).wait()
    assert purchase.error.code() == grpc.StatusCode.FAILED_PRECONDITION
    assert purchase.error.details() == "payment failed: FAILURE_REASON_NO_ROUTE"
    assert purchase.payment_state == "NONE" and is_unpaid(world, purchase, "failed")


def test_a_payment_that_lnd_refuses_is_said_to_be_none(world):
    world.buyer_lnd.payments_go = lambda _hash: "refuse"
    purchase = world.accept(world.quote()).wait()
    assert "SendPaymentV2: self-payments not allowed" in purchase.error.details()
    assert purchase.payment_state == "NONE" and is_unpaid(world, purchase, "none")


def test_a_payment_whose_answer_is_lost_is_delivered(world):
    world.buyer_lnd.payments_go = lambda _hash: "answer_lost"
    purchase = world.accept(world.quote()).wait()
    assert purchase.delivered
    assert money_of(world, purchase) == ("succeeded", SETTLED)


def test_a_second_accept_pays_nothing(world):
    job = Job(world, "paying")
    second = world.accept(job.terms).wait()
    assert second.error.details() == "the job is being executed"
    job.go_on()
    assert job.end().delivered
    third = world.accept(job.terms).wait()
    assert "already paid" in third.error.details() and third.payment_state == "SETTLED"
    assert money_of(world, job.purchase) == ("succeeded", SETTLED)


def test_a_slow_lnd_only_slows(world):
    for lnd in (world.buyer_lnd, world.seller_lnd):
        for call in ("SendCustomMessage", "AddInvoice", "SendPaymentV2"):
            lnd.troubles[call] = Trouble(delay_s=0.3)
    assert world.accept(world.quote()).wait().delivered


@pytest.mark.parametrize("stage", ["paying", "running", "sending"])
def test_a_buyer_that_is_told_to_stop_fetches_the_result_later(world, stage):
    job = Job(world, stage)
    world.buyer.process.send_signal(signal.SIGTERM)
    # It takes no new calls; the second signal ends those that it has.
    eventually(lambda: not world.buyer.listens())
    world.buyer.process.send_signal(signal.SIGTERM)
    restart(world.buyer)
    job.go_on()
    world.until_ready()
    purchase = job.end()
    assert purchase.delivered, purchase.error
    assert money_of(world, purchase) == ("succeeded", SETTLED)


@pytest.mark.parametrize("stage", ["running", "sending"])
def test_a_seller_that_is_told_to_stop_finishes_what_runs(world, stage):
    job = Job(world, stage)
    world.seller.process.send_signal(signal.SIGTERM)
    eventually(lambda: sells_no_more(world))
    job.go_on()
    purchase = job.end()
    restart(world.seller)
    assert purchase.delivered, purchase.error
    assert money_of(world, purchase) == ("succeeded", SETTLED)


def test_a_job_that_is_paid_while_its_seller_stops_runs_in_its_next_run(world):
    job = Job(world, "running")
    terms = world.quote()
    world.seller.process.send_signal(signal.SIGTERM)
    eventually(lambda: sells_no_more(world))
    begun = world.backend.begun
    late = world.accept(terms)
    eventually(lambda: world.seller_lnd.invoice(late.payment_hash).state == SETTLED)
    job.go_on()
    assert job.end().delivered
    restart(world.seller)
    assert late.wait().delivered, late.error
    assert world.backend.begun == begun + 1


def test_a_job_whose_backend_fails_is_shown_as_failed_at_once(world):
    before = sold(world)
    world.backend.fail_next()
    terms = world.quote()
    assert world.accept(terms).wait().error.details() == "lcp_error code=7: backend unavailable: status 500"
    eventually(lambda: sold(world)["ended"].get("failed", 0) > before["ended"].get("failed", 0))
    after = sold(world)
    assert terms.job_id.hex() not in {job["job_id"] for job in after["open"]}
    assert after["undelivered"] == before["undelivered"] + 1


def sold(world):
    """What `sell status` says of the seller, whose lnd is named by flags alone."""
    done = run_command("sell", "status", "--json", "--config", world.seller.flags[-1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def sells_no_more(world):
    try:
        world.ask()
    except grpc.RpcError as error:
        return "the node stops" in error.details()
    return False


def restart(daemon):
    """Start a node again that has been told to stop."""
    assert daemon.process.wait(60) == 0
    daemon.kill()
    daemon.start()
