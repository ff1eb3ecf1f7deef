"""``doctor`` on money: the journal, and lnd where one is configured."""

import asyncio
import threading

import pytest

from lcp_gateway.accounts.withdrawal_states import WithdrawalEvent
from lcp_gateway.accounts.withdrawals import WithdrawalRules
from lcp_gateway.node.config import NodeConfig, derive_key
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.accounts.withdrawals import Withdrawals
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.database.schema import HEAD
from tests.store.journals import NOW
from tests.store.withdrawing import RICH, new
from tests.support.lnd_standin import LndStandin, channel
from tests.support.written_purchases import Bought, written


@pytest.fixture
def at(node):
    return ("--lcpd-grpc-addr", node.address)


@pytest.fixture
def lnd(tmp_path):
    """A stand-in for lnd on an event loop of its own, with one channel."""
    folder = tmp_path / "lnd"
    folder.mkdir()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def on_loop(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(60)

    async def begin():
        standin = LndStandin(folder, key=derive_key(NodeConfig().seed, "node"))
        standin.channels.append(channel(50_000, reserve_sat=1_000))
        await standin.start()
        return standin

    standin = on_loop(begin())
    yield standin
    on_loop(standin.stop())
    loop.call_soon_threadsafe(loop.stop)
    thread.join(60)
    loop.close()


@pytest.fixture
def with_lnd(lnd):
    address = lnd.address
    return (
        "--lnd-grpc-addr", address.target,
        "--lnd-tls-cert", str(address.tls_cert),
        "--lnd-macaroon-file", str(address.macaroon),
    )  # fmt: skip


def test_the_journal_is_opened_and_its_unknown_purchases_are_counted(run, at, tmp_path):
    where = str(tmp_path / "j.db")
    written(where, Bought(1), Bought(2, State.UNKNOWN, price_msat=2_000))
    outcome = run("doctor", *at, "--journal-url", where)
    assert outcome.code == 0
    assert f"{where}, version {HEAD}; 1 unknown (2.010 sat)" in outcome.out
    assert "purchases resolve" in outcome.out


def test_a_missing_journal_is_not_created(run, at, tmp_path):
    outcome = run("doctor", *at)
    assert "journal.db is made at the first start" in outcome.out
    assert not (tmp_path / "state").exists()


def test_a_journal_that_cannot_be_made_or_read_is_found(run, at, tmp_path):
    taken = tmp_path / "taken"
    taken.write_text("not a database " * 100)
    for where in (taken, taken / "j.db"):
        outcome = run("doctor", *at, "--journal-url", str(where))
        assert outcome.code == 1
        assert "fail  journal" in outcome.out
        assert "ok    quote" in outcome.out


def test_another_journal_than_the_one_that_was_kept_before_is_found(run, at, tmp_path):
    """Regression: an empty journal in place of the old one was reported as fine."""
    where = tmp_path / "j.db"
    written(str(where), Bought(1))
    where.unlink()
    written(str(where))
    outcome = run("doctor", *at, "--journal-url", str(where))
    assert outcome.code == 1
    assert "fail  journal" in outcome.out
    assert "another journal was kept here before" in outcome.out
    assert f"{where}.identity" in outcome.out
    listed = run("purchases", "list", "--journal-url", str(where))
    assert listed.code == 0 and "another journal was kept here before" in listed.err


def test_a_journal_that_is_off_is_said_to_be(run, at):
    outcome = run("doctor", *at, "--journal-url", "off")
    assert outcome.code == 0
    assert "off: no purchase is recorded" in outcome.out
    assert "no journal is kept" in outcome.out


def test_an_lnd_of_another_network_is_found(run, at, with_lnd):
    outcome = run("doctor", *at, *with_lnd, "--network", "mainnet")
    assert outcome.code == 1
    assert "fail  lnd network" in outcome.out
    assert "its invoice is for another network" in outcome.out


def test_an_lnd_that_cannot_pay_is_found(run, at, lnd, with_lnd):
    lnd.channels.clear()
    lnd.info.synced_to_chain = False
    outcome = run("doctor", *at, *with_lnd)
    assert outcome.code == 1
    assert "fail  lnd  " in outcome.out
    assert "open a channel" in outcome.out


def test_an_lnd_that_does_not_answer_is_found(run, at, with_lnd):
    nowhere = ("--lnd-grpc-addr", "127.0.0.1:1")
    outcome = run("doctor", *at, *with_lnd, *nowhere)
    assert outcome.code == 1
    assert "fail  lnd  " in outcome.out
    assert "see lnd_grpc_addr" in outcome.out
    assert "ok    quote" in outcome.out


def test_withdrawals_that_wait_or_are_unknown_are_counted(run, at, tmp_path):
    async def make(where):
        database = await open_database(where)
        account = await Accounts(database).create("a customer", actor="test", at=NOW)
        await Ledger(database).adjust(account.id, Msat(100_000), reason="to begin with", actor="test", at=NOW)
        withdrawals = Withdrawals(database)
        rules = WithdrawalRules(enabled=True, min_msat=1, approval_msat=2_000)
        lost, _ = await withdrawals.create(new(account.id, 1), rules, RICH, NOW)
        await withdrawals.create(new(account.id, 2, 3_000), rules, RICH, NOW)
        await withdrawals.record(lost.id, WithdrawalEvent.LOSE_SIGHT, NOW)
        await database.close()

    where = str(tmp_path / "j.db")
    asyncio.run(make(where))
    shown = run("doctor", *at, "--journal-url", where, "--auth", "accounts").out
    assert "withdrawals" in shown and "off" in shown
    assert "1 unknown (1.100 sat)" in shown and "1 awaiting_approval (3.100 sat)" in shown
    assert "withdrawals resolve" in shown


def test_the_macaroon_of_withdrawals_is_probed_without_paying(run, at, with_lnd, lnd):
    arguments = ("doctor", *at, *with_lnd, "--journal-url", "off", "--lnd-withdrawal-macaroon-file")
    good = lnd.bake("withdrawals", "GetInfo", "ListChannels", "TrackPaymentV2", "SendPaymentV2")
    shown = run(*arguments, str(good)).out
    assert "lnd_withdrawal_macaroon_file allows all that is needed" in shown
    assert "it can also spend" not in shown.split("lnd_withdrawal_macaroon_file")[1].splitlines()[0]
    poor = lnd.bake("poor", "GetInfo", "ListChannels", "TrackPaymentV2")
    shown = run(*arguments, str(poor)).out
    assert "does not allow Router.SendPaymentV2 (offchain:write, for withdrawals)" in shown
    assert "--save_to=lcp-gateway-withdrawals.macaroon" in shown
    assert not lnd.sent
