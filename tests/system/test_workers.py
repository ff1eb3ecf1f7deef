"""Several workers behave as one gateway, and live and end as one."""

import json
import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.support.background import PATIENCE
from tests.support.gateway import gateway, run_command
from tests.support.journaled import counted_msat
from tests.support.ports import free_address
from tests.support.reloading import reloadable
from tests.support.wire import CHAT, RESPONSES, document, get, post
from tests.support.workers import WORKER, at_once, children, metric, running, runs, until, worker_processes

pytestmark = pytest.mark.slow

WORKERS = 4
TEN_WORDS = "one two three four five six seven eight nine ten"


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.db"


@pytest.fixture(scope="module")
def one(tmp_path_factory, journal):
    """A gateway with four workers, whose configuration file tests rewrite."""
    env = {"LCP_GATEWAY_JOURNAL_URL": str(journal)}
    with reloadable(tmp_path_factory.mktemp("workers"), args=["--workers", str(WORKERS)], env=env) as it:
        yield it


@pytest.fixture
def four(one):
    one.take("")
    yield one.running
    one.take("")


def ask(port, number=0, headers=None, path=CHAT, **fields):
    return post(port, path, document(path, **{"seed": number, **fields}), headers)


def test_one_key_is_one_payment_at_whichever_worker_it_comes_in(four):
    """Regression: two processes on one port bought one Idempotency-Key twice, each time."""
    before = len(four.events("accept"))
    answers = at_once(24, lambda _: ask(four.port, headers={"Idempotency-Key": "the-one"}))
    assert {answer.status for answer in answers} == {200}
    assert len({answer.body for answer in answers}) == 1
    assert len(four.events("accept")) - before == 1


def test_requests_are_spread_and_their_metrics_are_summed(four):
    answers = at_once(40, lambda number: ask(four.port, 100 + number, path=RESPONSES))
    assert {answer.status for answer in answers} == {200}
    # A request is counted after its answer, and of a worker that does not answer within three seconds the sum has what it
    # said before. Other tests ask for chats.
    until(
        lambda: metric(four, "lcpgateway_requests_total", endpoint=RESPONSES, status="200") == 40,
        "not every request was counted once",
    )
    assert metric(four, "lcpgateway_jobs_in_flight") == 0
    assert metric(four, "lcpgateway_peers") == 3
    # Where the supervisor does not answer within two seconds nothing is said of the workers.
    until(
        lambda: get(four.port, "/readyz").json.get("workers") == {"running": WORKERS, "of": WORKERS},
        "not all workers run",
    )
    busy = [process.cpu_times().user for process in worker_processes(four)]
    assert len(busy) == WORKERS


def test_a_rate_holds_for_all_workers_together(one, four):
    one.take("max_requests_per_minute = 100")
    began_at = time.monotonic()
    answers = at_once(150, lambda number: ask(four.port, 1_000 + number))
    admitted = Counter(answer.status for answer in answers)
    # Once a minute of the clock has ended, its requests weigh less with each second.
    more = 100 * (time.monotonic() - began_at) / 60
    assert 99 <= admitted[200] <= 101 + more, admitted
    assert admitted[200] + admitted[429] == 150, admitted


def test_a_budget_holds_for_all_workers_together(one, four, journal):
    one.take("fee_ppm = 0\nfee_base_msat = 0")
    price_msat = int(ask(four.port, 4_000, model="echo-1").headers["x-lcp-price-msat"])
    before_msat, left = counted_msat(journal, period="day"), 10
    limit_msat = before_msat + left * price_msat
    one.take(f"fee_ppm = 0\nfee_base_msat = 0\nbudget_day_msat = {limit_msat}")
    answers = at_once(40, lambda number: ask(four.port, 4_001 + number, model="echo-1"))
    assert Counter(answer.status for answer in answers) == {200: left, 402: 40 - left}
    assert {answer.error["code"] for answer in answers if answer.status == 402} == {"budget_exceeded"}
    assert counted_msat(journal, period="day") == limit_msat


def test_counters_never_fall_when_a_worker_dies_and_it_is_replaced(four):
    before = metric(four, "lcpgateway_requests_total", endpoint=CHAT)
    victim = worker_processes(four)[0]
    victim.kill()
    # Connections that the system gives to the dead worker are accepted by another.
    answers = at_once(24, lambda number: ask(four.port, 2_000 + number))
    assert {answer.status for answer in answers} == {200}
    assert metric(four, "lcpgateway_requests_total", endpoint=CHAT) >= before
    four.wait_for_log("a worker serves again")
    until(lambda: running(four) == WORKERS, "the worker did not come back")
    assert metric(four, "lcpgateway_requests_total", endpoint=CHAT) >= before


def stream_words(port, words):
    """Return the text of a slow stream, read to its end."""
    fields = {"model": "echo-slow", "stream": True, "messages": [{"role": "user", "content": words}]}
    answer = post(port, CHAT, document(CHAT, **fields))
    assert answer.status == 200, answer.body
    assert answer.whole
    assert answer.blocks[-1][1] == "[DONE]"
    return answer


@contextmanager
def streams(it, count):
    """Read slow streams at one time. All are paid for when the block begins, and all were read whole when it has ended.

    A request that is only admitted has no quote yet, and one in flight may still be refused: neither is a stream.
    """
    before = len(it.events("accept"))
    with ThreadPoolExecutor(count) as pool:
        reading = [pool.submit(stream_words, it.port, TEN_WORDS * 3) for _ in range(count)]

        def began():
            for stream in reading:
                if stream.done():
                    stream.result()
            return len(it.events("accept")) - before == count

        until(began, "the streams did not begin")
        yield
        for stream in reading:
            stream.result()


def test_a_reload_reaches_every_worker_and_no_stream_breaks(one, four):
    with streams(four, 8):
        line = one.take("max_price_msat = 1")
        assert line["changed"] == ["max_price_msat"]
        found = at_once(24, lambda number: ask(four.port, 3_000 + number))
        assert {(answer.status, answer.error["code"]) for answer in found} == {(402, "price_limit_exceeded")}
    refused = one.read("max_price_msat = -1")
    assert refused["event"] == "configuration not reloaded"
    assert {answer.status for answer in at_once(8, lambda number: ask(four.port, 3_100 + number))} == {402}


def test_sigterm_drains_every_worker(tmp_path):
    with gateway(args=["--workers", "3"]) as it:
        with streams(it, 6):
            left = psutil.Process(it.pid).children(recursive=True)
            assert it.stop() == 0
        assert not [process for process in left if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]


def test_a_killed_supervisor_leaves_nothing_behind(tmp_path):
    with gateway(args=["--workers", "2"]) as it:
        started = psutil.Process(it.pid).children(recursive=True)
        assert children(it, "redis-server" if children(it, "redis-server") else "valkey-server")
        os.kill(it.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(started, 60)
        assert not alive


def test_without_a_redis_the_gateway_says_how_to_get_one(tmp_path):
    ended = run_command("serve", "--embedded", "--workers", "2", env={"PATH": str(tmp_path)})
    assert ended.returncode == 2
    assert "neither redis-server nor valkey-server is installed" in ended.stderr
    assert "workers = 1" in ended.stderr


def test_the_commands_for_the_background_see_one_gateway(tmp_path):
    where = ("--http-addr", free_address())
    env = {
        "XDG_STATE_HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path),
        "LCP_GATEWAY_LOG_MAX_BYTES": "2000",
        **PATIENCE,
    }
    started = run_command("start", "--embedded", "--workers", "2", "--log-format", "json", *where, env=env)
    try:
        assert started.returncode == 0, started.stderr
        shown = json.loads(run_command("status", "--json", *where, env=env).stdout)
        assert (shown["state"], shown["workers"]) == ("running", {"running": 2, "of": 2})
        tree = psutil.Process(shown["pid"]).children(recursive=True)
        port = int(where[1].rpartition(":")[2])
        at_once(30, lambda number: ask(port, 5_000 + number))
        until(lambda: [*tmp_path.rglob("gateway-*.log.1")], "the log was not rotated")
        assert "changed: nothing" in run_command("reload", *where, env=env).stdout
        # Every worker writes to the file that has the log's name now.
        log = next(tmp_path.rglob("gateway-*.log"))
        workers = [process for process in tree if runs(process, WORKER)]
        assert len(workers) == 2
        for process in workers:
            until(lambda it=process: Path(f"/proc/{it.pid}/fd/2").samefile(log), "a worker writes to an old log")
    finally:
        stopped = run_command("stop", *where, env=env)
    assert stopped.returncode == 0, stopped.stderr
    assert not [process for process in tree if process.is_running() and process.status() != psutil.STATUS_ZOMBIE]
    assert not [*tmp_path.rglob("*.pid"), *tmp_path.rglob("*.workers")]
