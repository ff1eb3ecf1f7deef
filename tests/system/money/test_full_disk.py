"""A journal that cannot be written: nothing is paid, every client gets an error, and the gateway recovers by itself."""

import errno
import os
import sqlite3
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.support.forked import REAL_START
from tests.support.gated_node import gated_node
from tests.support.gateway import RunningGateway, gateway, run_command
from tests.support.journaled import (
    PAID_STATES,
    chat,
    counted_msat,
    on_node,
    query,
    quoted,
    spent_msat,
    state_counts,
    states,
)
from tests.support.node_thread import eventually
from tests.support.wire import CHAT, RESPONSES, Answer, document, get, post

GATED = "gated"
HUGE_BUDGET_MSAT = 10**15
UNAVAILABLE = ("full", "no space", "disk i/o", "readonly", "locked")


@pytest.fixture(scope="module")
def gated(tmp_path_factory):
    with gated_node(tmp_path_factory.mktemp("node"), faults=True, word=GATED) as running:
        yield running


@pytest.fixture
def node(gated):
    return gated[0]


@pytest.fixture
def gate(gated):
    """The file without which answers to prompts with ``GATED`` wait."""
    gated[1].unlink(missing_ok=True)
    return gated[1]


@pytest.fixture
def seen(node):
    return node.mark()


class SmallDisk:
    """A file system of 2 MiB that can be filled to the last byte."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ballast = folder / "ballast"

    def fill(self) -> None:
        with self._ballast.open("ab", buffering=0) as out:
            for size in (65_536, 4_096, 512, 1):
                try:
                    while out.write(b"x" * size) == size:
                        pass
                except OSError as error:
                    assert error.errno == errno.ENOSPC  # noqa: PT017 - it ends each of the loops

    def make_room(self) -> None:
        self._ballast.unlink()


@pytest.fixture
def small_disk(tmp_path) -> Iterator[SmallDisk]:
    if os.getuid() != 0:
        pytest.skip("mounting a file system takes root")
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("mounting is not allowed here")
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], check=True)


@contextmanager
def running_on(node, journal: Path, **variables: str) -> Iterator[RunningGateway]:
    settings = on_node(node, journal_url=journal, budget_month_msat=HUGE_BUDGET_MSAT)
    with gateway(embedded=False, env=settings | variables) as running:
        yield running


@contextmanager
def locked(journal: Path) -> Iterator[None]:
    other = sqlite3.connect(journal, isolation_level=None, timeout=10)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def buy_until_refused(port: int) -> tuple[list[Answer], Answer]:
    """Buy until the journal's allocated space is used up."""
    bought = []
    for _ in range(3_000):
        answer = post(port, CHAT, chat())
        if answer.status != 200:
            return bought, answer
        bought.append(answer)
    raise AssertionError("it is never full")


def is_unavailable(answer: Answer) -> None:
    assert answer.status == 503 and answer.whole
    assert answer.verdict == "none"
    assert answer.headers["x-should-retry"] == "true"
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.error["code"] == "journal_unavailable"
    assert answer.error["type"] == "server_error"
    assert "nothing was paid" in answer.error["message"]
    assert "journal" in answer.error["message"]
    assert "/" not in answer.error["message"], "a client need not know where files are"


def every_way_to_buy(port: int) -> list[Answer]:
    ways = [(path, stream) for path in (CHAT, RESPONSES) for stream in (False, True)]
    with ThreadPoolExecutor(len(ways)) as clients:
        return list(clients.map(lambda way: post(port, way[0], body_of(*way)), ways))


def body_of(path: str, stream: bool) -> dict:
    limit = {"max_tokens" if path == CHAT else "max_output_tokens": 4}
    return document(path, stream=stream, **limit)


def is_ready(port: int) -> bool:
    return get(port, "/readyz").status == 200


def journal_reason(port: int) -> str:
    answer = get(port, "/readyz")
    assert answer.status == 503
    assert answer.json["status"] == "unavailable"
    [reason] = answer.json["reasons"]
    assert reason.startswith("the journal cannot be written")
    assert any(word in reason for word in UNAVAILABLE)
    return reason


def test_on_a_full_disk_nothing_is_paid_and_every_client_gets_an_error(node, seen, small_disk):
    journal = small_disk.folder / "journal.db"
    with running_on(node, journal) as running:
        assert post(running.port, CHAT, chat()).status == 200
        assert is_ready(running.port)
        small_disk.fill()
        bought, refused = buy_until_refused(running.port)
        paid = seen.count("paid")
        assert paid == 1 + len(bought)
        for answer in (refused, *every_way_to_buy(running.port)):
            is_unavailable(answer)
        assert "full" in journal_reason(running.port)
        # Free requests are still served.
        assert quoted(running.port, chat())["price_msat"]
        assert get(running.port, "/healthz").status == 200
        assert seen.count("accept") == seen.count("paid") == paid
        running.wait_for_log('"problem":"unavailable"')

        small_disk.make_room()
        for answer in every_way_to_buy(running.port):
            assert answer.status == 200 and answer.verdict == "settled"
        assert is_ready(running.port)
    assert seen.count("accept") == seen.count("paid") == paid + 4
    found = states(journal)
    assert {found[job] for job in seen.jobs("paid")} == {"delivered"}
    assert counted_msat(journal) == spent_msat(journal)
    assert query(journal, "PRAGMA integrity_check") == [("ok",)]


def test_it_is_ready_again_by_itself(node, seen, small_disk):
    """A load balancer that uses /readyz sends no requests meanwhile, so no purchase can detect the recovery."""
    with running_on(node, small_disk.folder / "journal.db") as running:
        small_disk.fill()
        buy_until_refused(running.port)
        journal_reason(running.port)
        accepted = seen.count("accept")
        small_disk.make_room()
        eventually(lambda: is_ready(running.port))
        assert seen.count("accept") == accepted


def test_purchases_paid_before_the_disk_was_full_are_delivered_and_recorded_later(node, gate, seen, small_disk):
    journal = small_disk.folder / "journal.db"
    body = document(CHAT, "echo-1", f"one two {GATED} four", stream=True, max_tokens=30)
    with running_on(node, journal) as running, ThreadPoolExecutor(1) as client:
        slow = client.submit(post, running.port, CHAT, body)
        eventually(lambda: set(states(journal).values()) == {"settled"})
        small_disk.fill()
        buy_until_refused(running.port)
        assert not slow.done()
        gate.touch()
        answer = slow.result(60)
        assert answer.status == 200 and answer.whole and answer.blocks[-1][1] == "[DONE]"
        small_disk.make_room()
        eventually(lambda: {states(journal)[job] for job in seen.jobs("paid")} == {"delivered"})


def test_on_a_full_disk_a_killed_gateways_payments_are_in_the_journal(node, seen, small_disk):
    """Later states are lost, the intent of the payment is not."""
    journal = small_disk.folder / "journal.db"
    with ExitStack() as stack:
        running = stack.enter_context(running_on(node, journal))
        small_disk.fill()
        buy_until_refused(running.port)
        running.process.kill()
        running.process.wait(60)
    small_disk.make_room()
    with running_on(node, journal) as running:
        found = states(journal)
        assert {found[job] for job in seen.jobs("paid")} <= PAID_STATES
        assert post(running.port, CHAT, chat()).status == 200
    assert counted_msat(journal) == spent_msat(journal)


def test_a_gateway_does_not_start_without_room_for_its_journal(node, seen, small_disk):
    small_disk.fill()
    journal = small_disk.folder / "journal.db"
    settings = on_node(node, journal_url=journal, http_addr="127.0.0.1:0")
    ended = run_command("serve", env=settings)
    assert ended.returncode == 1
    assert "the journal cannot be used" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert "listening" not in ended.stdout


def test_on_a_locked_journal_nothing_is_paid_and_every_client_gets_an_error(node, seen, tmp_path):
    journal = tmp_path / "journal.db"
    with running_on(node, journal, **REAL_START) as running:
        assert post(running.port, CHAT, chat()).status == 200
        with locked(journal):
            answers = every_way_to_buy(running.port)
            for answer in answers:
                is_unavailable(answer)
            assert "locked" in journal_reason(running.port)
            assert seen.count("accept") == seen.count("paid") == 1
        for answer in every_way_to_buy(running.port):
            assert answer.status == 200
        assert is_ready(running.port)
    assert seen.count("accept") == seen.count("paid") == 5
    assert state_counts(journal) == {"delivered": 5}
    assert counted_msat(journal) == spent_msat(journal)


def test_a_lock_that_is_short_is_waited_for(node, seen, tmp_path):
    journal = tmp_path / "journal.db"
    with running_on(node, journal) as running, ThreadPoolExecutor(4) as clients:
        with locked(journal):
            waiting = [clients.submit(post, running.port, CHAT, chat()) for _ in range(4)]
            eventually(lambda: seen.count("quote") == 4)
            assert seen.count("accept") == 0
        assert [answer.result(60).status for answer in waiting] == [200] * 4
    assert seen.count("paid") == 4


def test_a_payment_under_way_while_the_journal_is_locked_is_recorded_afterwards(node, gate, seen, tmp_path):
    journal = tmp_path / "journal.db"
    body = document(CHAT, "echo-1", f"one two {GATED} four", stream=True, max_tokens=30)
    with running_on(node, journal) as running, ThreadPoolExecutor(1) as client:
        slow = client.submit(post, running.port, CHAT, body)
        eventually(lambda: set(states(journal).values()) == {"settled"})
        with locked(journal):
            gate.touch()
            answer = slow.result(60)
            assert answer.status == 200 and answer.whole
            assert set(states(journal).values()) == {"settled"}
        eventually(lambda: set(states(journal).values()) == {"delivered"})
    assert seen.count("paid") == 1
