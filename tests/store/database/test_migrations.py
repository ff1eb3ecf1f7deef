"""The database of an older gateway is migrated with all its rows."""

from contextlib import asynccontextmanager
from datetime import timedelta

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from lcp_gateway.purchase.journal import RequestRepeated
from lcp_gateway.purchase.money import Msat, Period
from lcp_gateway.purchase.order import TaskKind
from lcp_gateway.purchase.states import State
from lcp_gateway.store.accounts.accounts import Accounts
from lcp_gateway.store.accounts.ledger import Ledger
from lcp_gateway.store.background_responses import BackgroundRows
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.database.schema import HEAD, metadata
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.store.journal.recovery import resolve, sweep
from lcp_gateway.store.journal.writer import JournalWriter
from tests.store.journals import HOUR, NOW, charged, intent, job, keyed, spent, written

AT = int(NOW.timestamp() * 1_000_000)
OLD_COLUMNS = (
    "job_id, state, kind, task_kind, model, peer_id, upstream, key_id, request_id, price_msat, fee_cap_msat, "
    "terms_hash, payment_request, protocol_version, request_sha256, request_bytes, stream, expires_at, paying_at, "
    "updated_at, owner, intent_no"
)
OLD_PURCHASE = (
    f"INSERT INTO purchases({OLD_COLUMNS}) VALUES (:job_id, :state, 'lcp', '{TaskKind.CHAT_COMPLETIONS}', 'm', '02ab', 'lcpd', '',"
    f" 'req', 1000, 10, :job_id, 'lnbcrt1', 2, :job_id, 5, false, {AT}, {AT}, {AT}, 'abcdabcdabcdabcd', :number)"
)
OLD_COUNTER = f"INSERT INTO budget_spend VALUES ('', {AT - 30 * 60 * 10**6}, 'hour', 2020)"


def make_old(connection):
    config = Config()
    config.set_main_option("script_location", "lcp_gateway.store.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "0001")
    for number, state in enumerate(("paying", "delivered")):
        values = {"job_id": job(number), "state": state, "number": number}
        connection.execute(text(OLD_PURCHASE), values)
        connection.execute(
            text(f"INSERT INTO purchase_states VALUES (:job_id, 'paying', {AT})"), {"job_id": job(number)}
        )
    connection.execute(text(OLD_COUNTER))


@pytest.fixture(params=["sqlite", "postgresql"])
async def old_where(request, tmp_path):
    if request.param == "sqlite":
        path = tmp_path / "old.db"
        engine = create_engine(f"sqlite:///{path}")
        with engine.begin() as connection:
            make_old(connection)
        engine.dispose()
        yield str(path)
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            async with begun(url) as connection:
                await connection.run_sync(make_old)
            yield url


@asynccontextmanager
async def begun(url):
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        yield connection
    await engine.dispose()


async def test_the_purchases_of_an_older_gateway_stay_and_belong_to_no_account(old_where):
    database = await open_database(old_where, gone_after_s=0)
    books, ledger = Books(database), Ledger(database)
    assert (
        await database.read(lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)) == []
    )
    paying, delivered = [await books.purchase(job(number)) for number in range(2)]
    assert (paying.state, delivered.state) == (State.PAYING, State.DELIVERED)
    assert paying.charge is None and paying.charged_msat == delivered.charged_msat == 0
    assert await spent(books, HOUR) == 2_020
    assert len(await sweep(database, NOW)) == 1
    await resolve(database, job(0), State.NOT_PAID, NOW)
    assert await spent(books, HOUR) == 1_010
    audit = await ledger.audit()
    assert audit.ok and audit.purchases == 0
    await database.close()


async def test_an_older_database_serves_accounts_at_once(old_where):
    database = await open_database(old_where)
    account = await Accounts(database).create("new", actor="op", at=NOW)
    ledger = Ledger(database)
    await ledger.adjust(account.id, Msat(2_000), reason="a gift", actor="op", at=NOW)
    journal = JournalWriter(database, on_problem=print)
    journal.start()
    await journal.intend(charged(7, account.id))
    await journal.intend(intent(8))
    journal.record(job(7), State.SETTLED, NOW)
    await written(journal)
    assert (await ledger.balance(account.id)).balance_msat == 950
    assert (await ledger.audit()).ok
    (hour,) = await Books(database).budgets([HOUR], NOW)
    assert (hour.budget.period, hour.spent_msat) == (Period.HOUR, 4_040)
    await journal.close()
    await database.close()
    again = await open_database(old_where)
    assert (await Books(again).purchase(job(7))).charged_msat == 1_050
    await again.close()


# -- from the tables before jobs in the background ----------------------------------------------------


def revision_of(connection):
    return MigrationContext.configure(connection).get_current_revision()


def upgrade_to(connection, revision):
    config = Config()
    config.set_main_option("script_location", "lcp_gateway.store.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def make_second(connection):
    """Create the tables of revision 0002 with an account, its balance and a purchase charged to it."""
    make_old(connection)
    upgrade_to(connection, "0002")
    connection.execute(
        text(
            "UPDATE purchases SET account_id='acct_1', charge_msat=1050, markup_ppm=50000, markup_msat=0,"
            " refund_undelivered=false WHERE state='delivered'"
        )
    )


@pytest.fixture(params=["sqlite", "postgresql"])
async def second_where(request, tmp_path):
    if request.param == "sqlite":
        path = tmp_path / "second.db"
        engine = create_engine(f"sqlite:///{path}")
        with engine.begin() as connection:
            make_second(connection)
        engine.dispose()
        yield str(path)
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            async with begun(url) as connection:
                await connection.run_sync(make_second)
            yield url


async def test_a_gateway_that_knew_no_jobs_in_the_background_gets_their_table(second_where):
    database = await open_database(second_where)
    assert await database.read(revision_of) == HEAD
    differences = await database.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    assert differences == []
    book = BackgroundRows(database)
    await book.record("resp_bg_1", key_id="", model="m", at=NOW)
    assert (await book.find("resp_bg_1", "")).money == {"payment": "none"}
    await database.close()


async def test_purchases_and_their_charges_stay_as_they_were(second_where):
    database = await open_database(second_where)
    books = Books(database)
    paying, delivered = [await books.purchase(job(number)) for number in range(2)]
    assert (paying.state, delivered.state) == (State.PAYING, State.DELIVERED)
    assert paying.charge is None
    assert (delivered.charge.account_id, delivered.charge.amount_msat) == ("acct_1", 1_050)
    assert await spent(books, HOUR) == 2_020
    await database.close()
    again = await open_database(second_where)
    assert (await Books(again).purchase(job(1))).charge is not None
    await again.close()


# -- from the tables before repeats were recognised in the journal ------------------------------------


def make_third(connection):
    make_second(connection)
    upgrade_to(connection, "0003")
    connection.execute(
        text("INSERT INTO background_jobs VALUES ('resp_bg_1', '', 'm', :at, 'abcdabcdabcdabcd')"), {"at": AT}
    )


@pytest.fixture(params=["sqlite", "postgresql"])
async def third_where(request, tmp_path):
    if request.param == "sqlite":
        path = tmp_path / "third.db"
        engine = create_engine(f"sqlite:///{path}")
        with engine.begin() as connection:
            make_third(connection)
        engine.dispose()
        yield str(path)
    else:
        with request.getfixturevalue("postgres").fresh_database() as url:
            async with begun(url) as connection:
                await connection.run_sync(make_third)
            yield url


async def test_a_gateway_that_forgot_repeats_at_a_restart_learns_to_recognise_them(third_where):
    database = await open_database(third_where)
    assert await database.read(revision_of) == HEAD
    differences = await database.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    assert differences == []
    books = Books(database)
    assert [(await books.purchase(job(number))).state for number in range(2)] == [State.PAYING, State.DELIVERED]
    assert (await BackgroundRows(database).find("resp_bg_1", "")) is not None
    journal = JournalWriter(database, on_problem=print)
    journal.start()
    await journal.intend(keyed(7, "order 17"))
    with pytest.raises(RequestRepeated) as repeated:
        await journal.intend(keyed(8, "order 17"))
    assert repeated.value.earlier.quote.job_id == job(7)
    # A purchase from before the migration is not matched with a later retry.
    await journal.intend(keyed(9, None, retries=True))
    await journal.close()
    await database.close()


async def test_a_journal_gets_an_identity_of_its_own_once(third_where, tmp_path):
    database = await open_database(third_where)
    first = await database.read(identity_of)
    await database.close()
    again = await open_database(third_where)
    assert await again.read(identity_of) == first
    await again.close()
    other = await open_database(tmp_path / "other.db")
    assert await other.read(identity_of) != first
    await other.close()


def identity_of(connection):
    return connection.execute(text("SELECT value FROM journal_identity WHERE name = 'id'")).scalar_one()


# -- from the tables before protocol version 3 ----------------------------------------------------------


@pytest.mark.parametrize("revision", ["0011", "0012", "0013", "0014"])
async def test_purchases_of_protocol_version_2_promise_nothing_of_their_response(tmp_path, revision):
    path = tmp_path / "old.db"
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        upgrade_to(connection, revision)
        connection.execute(text(OLD_PURCHASE), {"job_id": job(0), "state": "delivered", "number": 0})
    engine.dispose()
    database = await open_database(str(path))
    differences = await database.read(
        lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)
    )
    assert differences == []
    found = await Books(database).purchase(job(0))
    assert (found.protocol_version, found.response_content_type, found.response_content_encoding) == (2, None, None)
    await database.close()


# -- the index of missing fees ----------------------------------------------------------------------------


@pytest.mark.parametrize("revision", ["0005", "0010", "0014"])
async def test_the_index_of_missing_fees_is_that_of_a_new_journal(tmp_path, revision):
    engine = create_engine(f"sqlite:///{tmp_path / 'old.db'}")
    with engine.begin() as connection:
        upgrade_to(connection, revision)
        for number, state in enumerate(("paying", "settled", "delivered", "undelivered", "not_paid")):
            connection.execute(text(OLD_PURCHASE), {"job_id": job(number), "state": state, "number": number})
    engine.dispose()
    migrated = await open_database(tmp_path / "old.db")
    new = await open_database(tmp_path / "new.db")
    sql = text("SELECT sql FROM sqlite_master WHERE name = 'ix_purchases_no_fee'")
    first, second = [await it.read(lambda connection: connection.execute(sql).scalar_one()) for it in (migrated, new)]
    assert " ".join(first.split()) == " ".join(second.split())
    assert await migrated.read(lambda connection: connection.execute(text("PRAGMA integrity_check")).scalar()) == "ok"
    await migrated.close()
    await new.close()


# -- the times of states, from every schema there was ---------------------------------------------------

HISTORIES = {
    "paying": ("paying",),
    "unknown": ("paying", "unknown"),
    "not_paid": ("paying", "unknown", "not_paid"),
    "settled": ("paying", "unknown", "settled"),
    "delivered": ("paying", "settled", "delivered"),
    "undelivered": ("paying", "unknown", "undelivered"),
}
BEFORE_STATE_TIMES = ("0001", "0002", "0003", "0004", "0005", "0006", "0009", "0010")


def make_histories(connection, revision):
    """Write a purchase of each state, with the times of its states, as gateways of this schema did."""
    upgrade_to(connection, revision)
    for number, (state, steps) in enumerate(HISTORIES.items()):
        connection.execute(text(OLD_PURCHASE), {"job_id": job(number), "state": state, "number": number})
        for after, step in enumerate(steps):
            row = {"job_id": job(number), "state": step, "at": AT + after}
            connection.execute(text("INSERT INTO purchase_states VALUES (:job_id, :state, :at)"), row)
        if state == "delivered":
            ended = {"job_id": job(number), "at": AT + len(steps) - 1}
            connection.execute(text("UPDATE purchases SET ended_at = :at WHERE job_id = :job_id"), ended)


@pytest.fixture(params=["sqlite", "postgresql"])
async def histories_at(request, tmp_path):
    """Return a function that makes an old database of a revision and returns where it is."""
    if request.param == "sqlite":

        async def make(revision):
            path = tmp_path / f"{revision}.db"
            engine = create_engine(f"sqlite:///{path}")
            with engine.begin() as connection:
                make_histories(connection, revision)
            engine.dispose()
            return str(path)

        yield make
        return
    with request.getfixturevalue("postgres").fresh_database() as url:

        async def make(revision):
            async with begun(url) as connection:
                await connection.run_sync(make_histories, revision)
            return url

        yield make


@pytest.mark.parametrize("revision", BEFORE_STATE_TIMES)
async def test_the_times_of_states_are_kept_as_columns(histories_at, revision):
    where = await histories_at(revision)
    database = await open_database(where, gone_after_s=0)
    assert (
        await database.read(lambda connection: compare_metadata(MigrationContext.configure(connection), metadata)) == []
    )
    books = Books(database)
    for number, steps in enumerate(HISTORIES.values()):
        record = await books.purchase(job(number))
        assert [(step.state.value, step.at) for step in record.steps] == [
            (state, NOW + timedelta(microseconds=after)) for after, state in enumerate(steps)
        ]
    # They go on from there.
    await resolve(database, job(1), State.SETTLED, NOW + timedelta(seconds=1))
    assert [step.state.value for step in (await books.purchase(job(1))).steps] == ["paying", "unknown", "undelivered"]
    assert len(await sweep(database, NOW + timedelta(seconds=2))) == 2
    assert [step.state.value for step in (await books.purchase(job(0))).steps] == ["paying", "unknown"]
    await database.close()
