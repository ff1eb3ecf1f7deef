import os
import sqlite3
import stat
from contextlib import closing
from subprocess import PIPE

import pytest

import lcp_gateway.encryption
from lcp_gateway.node.storage.database import connect
from lcp_gateway.node.storage.files import StoreUnavailable, make_key, read_key
from lcp_gateway.node.storage.history import open_history
from lcp_gateway.node.storage.records import Records
from lcp_gateway.node.storage.schema import STEPS, migrate, read_version
from lcp_gateway.node.storage.store import SqliteStore
from tests.support.forked import start_module
from tests.support.node_records import PREIMAGE, peer, piece, purchase, sale

NODE = peer(9)


def modes(folder):
    return {one.name: stat.S_IMODE(one.stat().st_mode) for one in folder.iterdir()}


def change(path, statement, *values):
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


async def refused(path, **settings):
    with pytest.raises(StoreUnavailable) as caught:
        await SqliteStore.open(path, **settings)
    return str(caught.value)


async def test_all_files_and_a_new_folder_are_the_operators_alone(open_store, path):
    store = await open_store()
    await store.keep_sale(sale(1))

    assert modes(path.parent) == dict.fromkeys(
        ["node.db", "node.db-wal", "node.db-shm", "node.db.key", "node.db.lock"], 0o600
    )
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


async def test_a_database_that_others_could_read_is_the_operators_alone_again(open_store, path):
    await open_store()
    path.chmod(0o644)

    await open_store()

    assert modes(path.parent)["node.db"] == 0o600


async def test_a_second_node_is_refused_while_the_first_has_the_database(open_store, path, tmp_path):
    await open_store()
    link = tmp_path / "link.db"
    link.symlink_to(path)

    assert await refused(path) == f"{path}: another node uses this database"
    assert await refused(link) == f"{path}: another node uses this database"


async def test_a_second_node_in_another_process_is_refused_until_the_first_is_killed(path):
    process = start_module(
        "tests.support.node_store_worker", str(path), "memory", "1", "1", env=dict(os.environ), stdout=PIPE, text=True
    )
    try:
        process.stdout.readline()
        assert await refused(path, at_rest="memory") == f"{path}: another node uses this database"
    finally:
        process.kill()
        process.wait(60)
        process.stdout.close()

    store = await SqliteStore.open(path, at_rest="memory")
    await store.close()


async def test_a_file_that_is_no_database_is_said_to_be_damaged_and_left_as_it_is(path):
    path.parent.mkdir()
    path.write_bytes(b"something else " * 1_000)

    assert (await refused(path)).startswith(f"{path}: damaged (file is not a database): restore a backup, or move")
    assert path.read_bytes() == b"something else " * 1_000


@pytest.mark.parametrize("size", [0, 100, 5_000, 20_000])
async def test_a_database_that_was_cut_off_is_said_to_be_damaged(open_store, path, size):
    store = await open_store()
    await store.keep_sale(sale(1, body=b"x" * 100_000))
    await store.close()
    os.truncate(path, size)

    message = await refused(path)

    assert message.startswith(f"{path}: ")
    assert "damaged (" in message


async def test_pages_that_were_overwritten_are_found_at_the_start(open_store, path):
    store = await open_store()
    await store.keep_sale(sale(1, body=b"x" * 100_000))
    await store.close()
    with path.open("r+b") as file:
        file.seek(4_096)
        file.write(b"\xff" * 8_192)

    assert f"{path}: damaged (" in await refused(path)


async def test_the_database_of_another_program_is_not_touched(path):
    path.parent.mkdir()
    change(path, "CREATE TABLE theirs (a)")
    before = path.read_bytes()

    assert await refused(path) == f"{path}: it is a database of another program"
    assert path.read_bytes() == before


async def test_a_database_of_a_newer_program_is_refused(open_store, path):
    await (await open_store()).close()
    change(path, f"PRAGMA user_version={len(STEPS) + 1}")

    assert await refused(path) == (
        f"{path}: its tables are of version {len(STEPS) + 1}, made by a newer program: this one knows {len(STEPS)}"
    )


async def test_older_tables_are_brought_to_the_next_version_and_keep_their_rows(open_store, path):
    store = await open_store()
    await store.keep_settle_index(NODE, 5)
    await store.close()
    later = (*STEPS, ("ALTER TABLE history ADD COLUMN note TEXT", "INSERT INTO facts VALUES ('note', 1)"))

    with closing(connect(path)) as connection:
        migrate(connection, later)
        assert read_version(connection) == len(STEPS) + 1
        facts = dict(connection.execute("SELECT name, value FROM facts WHERE name != 'key_check'"))
    assert facts == {f"settle_index {NODE}": 5, "note": 1}


async def test_delivered_sales_of_the_first_version_have_their_lines_and_are_not_open(open_store, path):
    rows = [Records(None, seals=False).sale_row(sale(number), 900) for number in (1, 2)]
    for row, delivered_at in zip(rows, (1_000, None), strict=True):
        del row["ended_at"], row["has_line"]
        row["delivered_at"] = delivered_at
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, STEPS[:1])
        for row in rows:
            places = ", ".join(f":{name}" for name in row)
            connection.execute(f"INSERT INTO sales ({', '.join(row)}) VALUES ({places})", row)

    store = await open_store(at_rest="memory", clock=lambda: 1_100)
    ended = {"outcome": "delivered", "price_msat": 1_000, "paid": True, "model": "model-a", "ended_at": 1_100}
    await store.end_sale(peer(1), sale(1).kept.request.job_id, **ended, line=True)

    assert len(await store.sales()) == 2
    with open_history(path) as history:
        (line,) = history.lines()
        (job,) = history.open_jobs()
    assert (line.kind, line.peer_id, line.outcome, line.paid, line.ended_at) == (
        "sale", peer(1), "delivered", True, 1_000,
    )  # fmt: skip
    assert job.peer_id == peer(2)


async def test_a_purchase_of_the_first_version_is_gone_on_with_though_its_payer_is_not_known(open_store, path):
    row = Records(None, seals=False).purchase_row(purchase(1), 900)
    assert row.pop("payer")
    path.parent.mkdir()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        migrate(connection, STEPS[:1])
        places = ", ".join(f":{name}" for name in row)
        connection.execute(f"INSERT INTO purchases ({', '.join(row)}) VALUES ({places})", row)

    (kept,) = await (await open_store()).purchases()

    assert kept.kept == purchase(1).kept and kept.payer == ""


async def test_a_step_that_fails_leaves_the_tables_as_they_were(open_store, path):
    await (await open_store()).close()
    wrong = (*STEPS, ("ALTER TABLE history ADD COLUMN note TEXT", "no statement"))

    with closing(connect(path)) as connection:
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection, wrong)
        assert read_version(connection) == len(STEPS)
        assert "note" not in [row[1] for row in connection.execute("PRAGMA table_info(history)")]


async def test_a_start_that_was_killed_while_it_made_the_database_is_made_up_for(open_store, path):
    path.parent.mkdir()
    path.with_name("node.db.new").write_bytes(b"half a database")
    path.with_name("node.db.new-journal").write_bytes(b"half a journal")

    store = await open_store()

    assert await store.sales() == []
    assert not path.with_name("node.db.new").exists()


async def test_a_file_that_is_replaced_while_the_node_runs_is_noticed_before_the_next_write(open_store, path):
    store = await open_store()
    path.rename(path.with_name("moved.db"))
    with pytest.raises(StoreUnavailable, match=r"node.db: no such file"):
        await store.keep_settle_index(NODE, 1)

    path.with_name("moved.db").rename(path.with_name("node.db"))
    await store.keep_settle_index(NODE, 2)

    path.with_name("copy.db").write_bytes(path.read_bytes())
    path.with_name("copy.db").rename(path)
    with pytest.raises(StoreUnavailable, match="was replaced while the node runs"):
        await store.keep_settle_index(NODE, 3)


async def test_what_a_burst_of_long_requests_took_is_given_back_at_the_next_start(open_store, path):
    store = await open_store()
    for number in range(5):
        await store.keep_sale(sale(number, body=b"x" * 1_000_000))
    for number in range(5):
        await store.forget_sale(peer(number), sale(number).kept.request.job_id)
    await store.close()
    assert path.stat().st_size > 5_000_000

    await (await open_store()).close()

    assert path.stat().st_size < 200_000


async def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("no folder")

    assert await refused(tmp_path / "file" / "node.db") == f"{tmp_path}/file/node.db: file exists"


async def test_sealed_requests_without_their_key_stop_the_start(open_store, path):
    store = await open_store()
    await store.keep_sale(sale(1))
    await store.close()
    key = path.with_name("node.db.key")
    kept = key.read_bytes()

    key.unlink()
    for at_rest in ("encrypted", "memory"):
        assert (await refused(path, at_rest=at_rest)).startswith(f"{key}: missing: it is the key of the requests")
        assert not key.exists()

    make_key(key)
    assert await refused(path) == f"{key}: not the key of the requests and results that the database keeps"

    key.write_bytes(kept)
    assert len(await (await open_store()).sales()) == 1


async def test_where_nothing_is_sealed_a_lost_key_is_made_anew(open_store, path):
    store = await open_store()
    await store.keep_purchase(purchase(1))
    await store.close()
    path.with_name("node.db.key").unlink()

    store = await open_store()
    await store.keep_sale(sale(1))

    assert len(await (await open_store()).sales()) == 1


async def test_a_key_file_may_be_elsewhere(open_store, path, tmp_path):
    store = await open_store(key_file=tmp_path / "keys" / "node")

    assert stat.S_IMODE((tmp_path / "keys" / "node").stat().st_mode) == 0o600
    assert "node.db.key" not in modes(path.parent)
    await store.close()


@pytest.mark.parametrize("text", ["", "ab" * 31, "no hex", "ab" * 33, "\xe9" * 64])
def test_a_damaged_key_is_said_to_be_one(tmp_path, text):
    file = tmp_path / "key"
    file.write_text(text, encoding="latin-1")
    file.chmod(0o600)

    with pytest.raises(StoreUnavailable, match=f"^{file}: damaged: a key is 64 hex digits"):
        read_key(file)


def test_a_key_that_others_may_read_is_refused(tmp_path):
    make_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o640)

    with pytest.raises(StoreUnavailable, match="other users may read this key: chmod 600"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE sales SET sealed_body = x'00'", "a kept request or result was altered"),
        ("UPDATE sales SET sealed_body = sealed_preimage", "a kept request or result was altered"),
        ("UPDATE sales SET job_id = zeroblob(32)", "a kept request or result was altered"),
        ("UPDATE sent SET position = position + 1", "a kept request or result was altered"),
        ("UPDATE sales SET quote = request", "no QuoteResponse is where one was kept"),
        ("UPDATE sales SET quote = x'01'", "a kept message is cut off"),
        ("UPDATE sales SET quote = substr(quote, 1, 40)", "a kept message is cut off"),
        ("UPDATE sales SET quote = CAST(quote || quote AS BLOB)", "no QuoteResponse is where one was kept"),
        ("UPDATE sales SET quote = CAST(quote AS TEXT)", "a value has another type"),
        ("UPDATE sales SET protocol = 9", "9 is not a valid Protocol"),
    ],
)
async def test_a_row_that_was_altered_is_said_to_be_damaged(open_store, path, statement, problem):
    store = await open_store()
    await store.keep_sale(sale(1, hold_preimage=PREIMAGE))
    await store.keep_sent(peer(1), sale(1).kept.request.job_id, (piece(1),))
    await store.close()
    change(path, statement)

    store = await open_store()
    with pytest.raises(StoreUnavailable) as caught:
        await store.sales()

    assert str(caught.value).startswith(f"{path}: damaged ({problem}): restore a backup")


async def test_without_the_library_the_start_says_what_to_install_and_memory_alone_needs_none(path, monkeypatch):
    def missing(_):
        raise lcp_gateway.encryption.EncryptionNotInstalled("encryption needs the library cryptography")

    monkeypatch.setattr("lcp_gateway.node.storage.sealing.Encryption", missing)

    assert await refused(path) == "encryption needs the library cryptography; or set store.at_rest to memory"
    store = await SqliteStore.open(path, at_rest="memory")
    await store.keep_sale(sale(1))
    await store.close()
