"""A new database is made without Alembic, and is the same as one that all migrations made."""

import asyncio
import re
import subprocess
import sys
from contextlib import asynccontextmanager

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine

from lcp_gateway.store.database.creation import create_tables
from lcp_gateway.store.database.engines import open_database
from lcp_gateway.store.database.schema import APPEND_ONLY, HEAD


def migrate_all(connection):
    config = Config()
    config.set_main_option("script_location", "lcp_gateway.store.database:migrations")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def _plain(value):
    return re.sub(r"\s+", " ", str(value)).strip().lower()


def shape(connection):
    """Return everything about the tables but the order of their columns."""
    seen = inspect(connection)
    found = {}
    for table in sorted(seen.get_table_names()):
        found[table] = {
            "columns": sorted(
                (c["name"], str(c["type"]), c["nullable"], str(c["default"])) for c in seen.get_columns(table)
            ),
            "primary key": (
                seen.get_pk_constraint(table)["constrained_columns"],
                _name_of_key(connection, seen, table),
            ),
            "foreign keys": sorted(
                (k["constrained_columns"], k["referred_table"], k["referred_columns"], str(k.get("options")))
                for k in seen.get_foreign_keys(table)
            ),
            "unique": sorted((str(c["name"]), c["column_names"]) for c in seen.get_unique_constraints(table)),
            "checks": sorted((str(c["name"]), _plain(c["sqltext"])) for c in seen.get_check_constraints(table)),
        }
    return {"tables": found, "rest": rest_of(connection)}


def _name_of_key(connection, seen, table):
    return seen.get_pk_constraint(table)["name"] if connection.dialect.name == "postgresql" else None


def rest_of(connection):
    """Return indexes with their conditions, triggers and functions, and the rows that a database begins with."""
    if connection.dialect.name == "sqlite":
        rows = connection.execute(text("SELECT type, name, sql FROM sqlite_master WHERE sql IS NOT NULL")).all()
        made = sorted((kind, name, _plain(sql)) for kind, name, sql in rows if kind != "table")
        made += sorted(
            (name, "without rowid" in _plain(sql), "check" in _plain(sql))
            for kind, name, sql in rows
            if kind == "table"
        )
    else:
        made = sorted(
            map(
                tuple,
                connection.execute(text("SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'")),
            )
        )
        triggers = "SELECT tgname, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal"
        made += sorted(map(tuple, connection.execute(text(triggers))))
        functions = (
            "SELECT proname, pg_get_functiondef(p.oid) FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace"
            " WHERE nspname = 'public'"
        )
        made += sorted((name, _plain(body)) for name, body in connection.execute(text(functions)))
    begun = {
        "version": connection.execute(text("SELECT version_num FROM alembic_version")).scalars().all(),
        "identity": sorted(
            (name, len(bytes(value)))
            for name, value in connection.execute(text("SELECT name, value FROM journal_identity"))
        ),
    }
    for table in inspect(connection).get_table_names():
        if table not in {"alembic_version", "journal_identity"}:
            begun[table] = sorted(map(tuple, connection.execute(text(f"SELECT * FROM {table}"))))
    return {"made": made, "rows": begun}


def shape_on_sqlite(path, make):
    engine = create_engine(f"sqlite:///{path}")
    with engine.begin() as connection:
        make(connection)
    with engine.connect() as connection:
        found = shape(connection)
    engine.dispose()
    return found


@asynccontextmanager
async def begun(url):
    engine = create_async_engine(url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        yield connection
    await engine.dispose()


async def shape_on_postgres(postgres, make):
    with postgres.fresh_database() as url:
        async with begun(url) as connection:
            await connection.run_sync(make)
        async with begun(url) as connection:
            return await connection.run_sync(shape)


def test_both_ways_make_the_same_tables_on_sqlite(tmp_path):
    created = shape_on_sqlite(tmp_path / "created.db", create_tables)
    migrated = shape_on_sqlite(tmp_path / "migrated.db", migrate_all)
    assert created == migrated
    assert created["rest"]["rows"]["version"] == [HEAD]


async def test_both_ways_make_the_same_tables_on_postgresql(postgres):
    assert await shape_on_postgres(postgres, create_tables) == await shape_on_postgres(postgres, migrate_all)


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize("what", ["UPDATE {} SET at = 1", "DELETE FROM {}"])
async def test_no_row_of_the_ledger_or_the_log_can_be_changed(where, table, what):
    database = await open_database(where)
    columns = {
        "ledger_entries": "(tx, at, book, amount_msat, cause, cause_id) VALUES (1, 1, 'b', 1, 'c', 'i')",
        "admin_log": "(at, actor, action, target, detail) VALUES (1, 'a', 'b', 'c', '{}')",
    }[table]
    await database.write(lambda connection: connection.execute(text(f"INSERT INTO {table} {columns}")))
    with pytest.raises(Exception, match="append-only"):
        await database.write(lambda connection: connection.execute(text(what.format(table))))
    await database.close()


def test_a_new_database_is_made_without_alembic(tmp_path):
    program = (
        "import asyncio, sys\n"
        "from lcp_gateway.store.database.engines import open_database\n"
        "async def main():\n"
        "    await (await open_database(sys.argv[1])).close()\n"
        "asyncio.run(main())\n"
        "assert not [name for name in sys.modules if name.startswith(('alembic', 'sqlalchemy.dialects.postgresql'))]\n"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "new.db")], check=True, timeout=120)
    assert asyncio.run(_version(tmp_path / "new.db")) == HEAD


async def _version(path):
    database = await open_database(path)
    found = await database.read(lambda c: c.execute(text("SELECT version_num FROM alembic_version")).scalar_one())
    await database.close()
    return found
