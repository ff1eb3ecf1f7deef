"""One request is paid for once, whichever process on the same journal it comes to, before a restart and after it."""

import json
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.gateway import RunningGateway, gateway, run_command
from tests.support.journaled import chat, money_node, on_node, quoted
from tests.support.node_thread import eventually
from tests.support.stored import retrieve
from tests.support.wire import CHAT, RESPONSES, Answer, document
from tests.support.wire import post as posted

pytestmark = pytest.mark.slow

CLIENTS = 16
# Payments stand for a while, so that a second request comes while the first is being paid.
NODE = """
[wallet]
payment_latency_s = 0.15
"""
KEYS = ("sk-mine-of-the-test", "sk-theirs-of-the-test")
MINE, THEIRS = ({"Authorization": f"Bearer {key}"} for key in KEYS)


@pytest.fixture(scope="module")
def node(tmp_path_factory):
    with money_node(tmp_path_factory.mktemp("node"), toml=NODE, faults=True) as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def journal(request, tmp_path) -> Iterator[str]:
    """The address of a new journal."""
    if request.param == "sqlite":
        yield str(tmp_path / "journal.db")
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            yield url


@contextmanager
def serving(node, journal, **settings) -> Iterator[RunningGateway]:
    settings = {"api_keys": ",".join(KEYS), "timeout_execute_s": 60, **settings}
    env = on_node(node, journal_url=journal, **settings)
    with gateway(embedded=False, env=env) as running:
        yield running


@contextmanager
def two(node, journal, **settings) -> Iterator[tuple[RunningGateway, RunningGateway]]:
    """Two gateways that wait for each other's commits, however long a busy machine takes for one."""
    with ExitStack() as stack:
        yield tuple(stack.enter_context(serving(node, journal, **settings)) for _ in range(2))


def post(port, path, body, headers=None) -> Answer:
    """Send a request, with a time-out in which a repeat can wait until a killed gateway is taken for dead."""
    return posted(port, path, body, headers, 120.0)


def keyed(key, headers=MINE):
    return {**headers, "Idempotency-Key": key}


def killed(running: RunningGateway) -> None:
    running.process.kill()
    running.process.wait(60)


def terminated(running: RunningGateway) -> None:
    assert running.stop(signal.SIGTERM) == 0


def is_gone(answer, job_id=None, payment="settled"):
    """Check that an answer is the 409 of an earlier purchase whose result is no longer held."""
    assert answer.status == 409, answer.body
    error = answer.error
    assert error["code"] == "answer_gone", error
    assert answer.verdict == error["lcp"]["payment"]
    assert answer.verdict in payment.split(" or ")
    assert answer.headers["x-should-retry"] == "false"
    assert error["lcp"]["job_id"] == answer.headers["x-lcp-job-id"]
    assert job_id in {None, error["lcp"]["job_id"]}
    return error


@pytest.mark.parametrize("stream", [False, True])
def test_two_processes_pay_once_for_each_key_of_sixteen_clients(node, journal, stream):
    """Once two processes on one journal paid twice for each of four keys."""
    seen = node.mark()
    with two(node, journal) as gateways:
        ready = threading.Barrier(CLIENTS)

        def ask(number):
            ready.wait(60)
            key, port = number % 4, gateways[number // 4 % 2].port
            return key, post(port, CHAT, chat(stream=stream), keyed(f"order {key}"))

        with ThreadPoolExecutor(CLIENTS) as pool:
            came = list(pool.map(ask, range(CLIENTS)))
        assert seen.count("accept") == 4
        assert len(set(seen.jobs("accept"))) == 4
        for key in range(4):
            answers = [answer for of, answer in came if of == key]
            whole = [answer for answer in answers if answer.status == 200]
            # The clients of the process that bought share the answer.
            assert len(whole) == 2 and len({answer.body for answer in whole}) == 1
            (job_id,) = {answer.headers["x-lcp-job-id"] for answer in whole}
            for answer in answers:
                if answer.status != 200:
                    is_gone(answer, job_id)
    assert seen.count("paid") == 4


@pytest.mark.parametrize("end", [killed, terminated])
def test_a_restart_in_between_does_not_pay_again(node, journal, end):
    """Once the same key was paid for again after a restart."""
    seen = node.mark()
    with serving(node, journal) as first:
        bought = post(first.port, CHAT, chat(), keyed("k"))
        assert bought.status == 200
        end(first)
    with serving(node, journal) as second:
        with ThreadPoolExecutor(CLIENTS) as pool:
            came = list(pool.map(lambda _: post(second.port, CHAT, chat(), keyed("k")), range(CLIENTS)))
        # Its outcome may not have been on disk when the process was killed.
        payment = "settled or unknown" if end is killed else "settled"
        for answer in came:
            error = is_gone(answer, bought.headers["x-lcp-job-id"], payment)
            assert error["lcp"]["request_id"] == bought.headers["x-request-id"]
        other = post(second.port, CHAT, chat(text="another"), keyed("k"))
        assert (other.status, other.error["code"]) == (422, "idempotency_key_reused")
        assert other.verdict == "none"
        # The right request is not harmed by the wrong one under its key.
        is_gone(post(second.port, CHAT, chat(), keyed("k")), payment=payment)
        theirs = post(second.port, CHAT, chat(), keyed("k", THEIRS))
        assert theirs.status == 200
    assert seen.count("accept") == 2


def test_a_key_whose_payment_was_cut_off_is_not_paid_again_until_it_is_known_to_be_unpaid(node, journal):
    seen = node.mark()
    body = chat("fault/execute-hangs")
    with serving(node, journal) as first, ThreadPoolExecutor(1) as pool:
        asked = pool.submit(post, first.port, CHAT, body, keyed("cut"))
        eventually(lambda: seen.count("accept") == 1)
        killed(first)
        with pytest.raises((OSError, EOFError, AssertionError)):
            assert asked.result().status
    with serving(node, journal) as second:
        is_gone(post(second.port, CHAT, body, keyed("cut")), payment="unknown")
    assert seen.count("accept") == 1


def test_an_unpaid_request_is_bought_when_it_is_repeated_at_another_process(node, journal):
    seen = node.mark()
    with two(node, journal) as (one, other):
        failed = post(one.port, CHAT, chat("fault/no-route"), keyed("again"))
        assert (failed.verdict, failed.headers["x-should-retry"]) == ("none", "true")
        again = post(other.port, CHAT, chat("fault/no-route"), keyed("again"))
        assert (again.verdict, again.error["code"]) == ("none", "payment_failed")
        assert len(set(seen.jobs("accept"))) == 2


def test_a_key_is_free_again_once_the_operator_resolves_it_as_not_paid(node, journal, tmp_path):
    """A repeat must be bought, also at the process that still has the purchase as unknown."""
    seen = node.mark()
    body = chat("fault/execute-code-unavailable")
    with two(node, journal) as (one, other):
        lost = post(one.port, CHAT, body, keyed("lost"))
        assert lost.verdict == "unknown"
        for port in (one.port, other.port):
            again = post(port, CHAT, body, keyed("lost"))
            assert again.verdict == "unknown" and again.headers["x-should-retry"] == "false"
        assert seen.count("accept") == 1
        job_id = lost.headers["x-lcp-job-id"]
        resolve = ["purchases", "resolve", job_id, "not_paid", "--why", "lnd says so", "--yes"]
        done = run_command(*resolve, env={"LCP_GATEWAY_JOURNAL_URL": journal, "XDG_STATE_HOME": str(tmp_path)})
        assert done.returncode == 0, done.stderr
        assert post(one.port, CHAT, body, keyed("lost")).verdict == "unknown"
        assert len(set(seen.jobs("accept"))) == 2
        # Now this purchase is the unknown one.
        is_gone(post(other.port, CHAT, body, keyed("lost")), payment="unknown")


def test_a_request_that_another_process_is_paying_waits_for_the_outcome(node, journal):
    """An SDK that retries at another process must not pay twice, and buys where the first try was not paid."""
    seen = node.mark()
    with two(node, journal) as (one, other), ThreadPoolExecutor(2) as pool:
        first = pool.submit(post, one.port, CHAT, chat(), keyed("at once"))
        eventually(lambda: seen.count("accept") == 1)
        second = pool.submit(post, other.port, CHAT, chat(), keyed("at once"))
        assert first.result().status == 200
        is_gone(second.result(), first.result().headers["x-lcp-job-id"])
    assert seen.count("accept") == 1


def test_a_retry_of_an_sdk_after_a_restart_does_not_pay_again(node, journal):
    """Also without a key: a request that is marked as a retry matches the same body from before the restart."""
    seen = node.mark()
    tried = {**MINE, "x-stainless-retry-count": "0"}
    again = {**MINE, "x-stainless-retry-count": "1"}
    with serving(node, journal) as first:
        bought = post(first.port, CHAT, chat(), tried)
        codex = post(first.port, CHAT, chat(text="codex"), {**MINE, "x-client-request-id": "c1"})
        assert bought.status == codex.status == 200
        killed(first)
    with serving(node, journal) as second:
        payment = "settled or unknown"
        is_gone(post(second.port, CHAT, chat(), again), bought.headers["x-lcp-job-id"], payment)
        is_gone(
            post(second.port, CHAT, chat(text="codex"), {**MINE, "x-client-request-id": "c1"}),
            codex.headers["x-lcp-job-id"],
            payment,
        )
        assert seen.count("accept") == 2
        # A new request with the same body is a new request, and its retries find it.
        fresh = post(second.port, CHAT, chat(), tried)
        assert fresh.status == 200
        assert post(second.port, CHAT, chat(), again).body == fresh.body
        assert post(second.port, CHAT, chat(text="new"), again).status == 200
    assert seen.count("accept") == 4


def test_a_quote_that_was_taken_before_a_restart_is_409_with_its_outcome(node, journal):
    """Once it was answered 404 with `none`, although it had been paid."""
    seen = node.mark()
    with serving(node, journal) as first:
        quote_id = quoted(first.port, chat(), headers=MINE)["id"]
        taken = {**MINE, "X-Lcp-Quote-Id": quote_id}
        bought = post(first.port, CHAT, chat(), {**taken, "Idempotency-Key": "q"})
        assert bought.status == 200
        # The same once more in the same process, without the key that would join it.
        is_gone(post(first.port, CHAT, chat(), taken), bought.headers["x-lcp-job-id"], "settled or unknown")
        terminated(first)
    with serving(node, journal) as second:
        for headers in (taken, {**taken, "Idempotency-Key": "q"}):
            is_gone(post(second.port, CHAT, chat(), headers), bought.headers["x-lcp-job-id"])
        theirs = post(second.port, CHAT, chat(), {**THEIRS, "X-Lcp-Quote-Id": quote_id})
        assert (theirs.status, theirs.verdict) == (404, "none")
        never = post(second.port, CHAT, chat(), {**MINE, "X-Lcp-Quote-Id": "quote_" + "ab" * 32})
        assert (never.status, never.error["code"]) == (404, "quote_not_found")
    assert seen.count("accept") == 1


def test_a_job_in_the_background_is_begun_once_whatever_process_is_asked(node, journal):
    seen = node.mark()
    body = document(RESPONSES, "echo-1", background=True)
    with serving(node, journal) as first:
        begun = post(first.port, RESPONSES, body, keyed("job"))
        assert begun.status == 200, begun.body
        response_id = begun.json["id"]
        eventually(lambda: retrieve(first.port, response_id, headers=MINE).json["status"] == "completed")
        with serving(node, journal) as other:
            error = is_gone(post(other.port, RESPONSES, body, keyed("job")))
            # The background response is polled by this id.
            assert error["lcp"]["request_id"] == response_id
        terminated(first)
    with serving(node, journal) as second:
        is_gone(post(second.port, RESPONSES, body, keyed("job")))
        streamed = post(second.port, RESPONSES, {**body, "stream": True}, keyed("job"))
        assert streamed.status == 422
        other = post(second.port, RESPONSES, document(RESPONSES, "echo-1", text="x", background=True), keyed("job"))
        assert other.status == 422, other.body
    assert seen.count("accept") == 1


def test_sixteen_clients_that_start_one_job_at_two_processes_pay_once(node, journal):
    seen = node.mark()
    body = document(RESPONSES, "echo-1", background=True)
    with two(node, journal) as gateways:
        ready = threading.Barrier(CLIENTS)

        def begin(number):
            ready.wait(60)
            port = gateways[number % 2].port
            return port, post(port, RESPONSES, body, keyed("one job"))

        with ThreadPoolExecutor(CLIENTS) as pool:
            came = list(pool.map(begin, range(CLIENTS)))
        begun = {(port, answer.json["id"]) for port, answer in came if answer.status == 200}
        for _, answer in came:
            if answer.status != 200:
                is_gone(answer, payment=answer.verdict)

        def ended():
            shown = [retrieve(port, it, headers=MINE).json for port, it in begun]
            return all(job["status"] in {"completed", "failed"} for job in shown) and shown

        eventually(ended)
        came = Counter(job["status"] for job in ended())
        assert came["completed"] == 1
        for job in ended():
            if job["status"] == "failed":
                assert job["error"]["code"] == "answer_gone", json.dumps(job)
                assert job["lcp"]["payment"] == "settled"
    assert seen.count("accept") == seen.count("paid") == 1
