"""A real PostgreSQL of the test session: its own data folder, on loopback, ended by its process id."""

import asyncio
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import asyncpg
import psutil
import pytest

from tests.support.ports import free_port

START_TIMEOUT_S = 120.0
# One statement each: triggers and foreign keys are off for the session, so that append-only tables can be emptied too.
EMPTY = """
DO $$ DECLARE found record; BEGIN
  PERFORM pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid();
  SET LOCAL session_replication_role = replica;
  FOR found IN SELECT oid::regclass AS name, relkind AS kind FROM pg_class
      WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'S')
      AND relname NOT IN ('alembic_version', 'journal_identity') LOOP
    IF found.kind = 'S' THEN PERFORM setval(found.name, 1, false);
    ELSE EXECUTE format('DELETE FROM %s', found.name); END IF;
  END LOOP;
END $$
"""
# The schema, which a test may have changed: it is compared before a database is lent again.
FINGERPRINT = """
SELECT md5(string_agg(line, ',' ORDER BY line)) FROM (
  SELECT concat(attrelid::regclass, attname, atttypid, attnotnull) AS line FROM pg_attribute
    JOIN pg_class ON pg_class.oid = attrelid WHERE relnamespace = 'public'::regnamespace
  UNION ALL SELECT concat(tgrelid::regclass, tgname, tgenabled) FROM pg_trigger
  UNION ALL SELECT concat(conrelid::regclass, pg_get_constraintdef(oid)) FROM pg_constraint
  UNION ALL SELECT concat(proname, prosrc) FROM pg_proc WHERE pronamespace = 'public'::regnamespace
  UNION ALL SELECT concat(setconfig) FROM pg_db_role_setting
    WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))
  UNION ALL SELECT version_num FROM alembic_version
  UNION ALL SELECT concat(name, encode(value, 'hex')) FROM journal_identity
) AS lines
"""
BINARIES = Path("/usr/lib/postgresql")


def binaries() -> Path:
    """Return the folder of postgres and initdb, or skip the test; where CI=true they must be installed."""
    found = sorted(BINARIES.glob("*/bin/postgres"), key=lambda path: int(path.parts[-3]))
    if not found and (on_path := shutil.which("postgres")):
        found = [Path(on_path)]
    if not found and os.environ.get("CI") != "true":
        pytest.skip("PostgreSQL is not installed (Debian's package: postgresql)")
    assert found, "PostgreSQL must be installed where CI=true"
    return found[-1].parent


def _user() -> str:
    """Return a user for PostgreSQL, which refuses to run as root."""
    if os.getuid() != 0:
        return pwd.getpwuid(os.getuid()).pw_name
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise AssertionError("there is no user to run PostgreSQL as")


def as_user(name: str) -> list[str]:
    """Return what a command line begins with to run as a user, where these tests run as root.

    Not ``Popen(user=...)``: that forks, and in a process with threads of gRPC a forked child may die before it is the program.
    """
    if os.getuid() != 0:
        return []
    entry = pwd.getpwnam(name)
    return ["setpriv", f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups", "--"]


@dataclass
class RunningPostgres:
    folder: Path
    port: int
    user: str
    process: subprocess.Popen | None = None
    idle: dict[str, list[str]] = field(default_factory=dict)
    """Copies of each template that a test is through with, emptied."""
    fingerprints: dict[str, object] = field(default_factory=dict)

    @cached_property
    def version(self) -> int:
        return int(self.sql("SHOW server_version_num")) // 10_000

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *as_user(self.user),
                    binaries() / "postgres",
                    "-D",
                    self.folder / "data",
                    *("-p", str(self.port)),
                    *("-h", "127.0.0.1"),
                    *("-k", self.folder),
                    *("-c", "max_connections=60"),
                    *("-c", "shared_buffers=16MB"),
                    # Only programs are killed in tests, never the machine.
                    *("-c", "fsync=off"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd="/",
            )
        self._wait()

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """SIGINT is a fast shutdown, SIGQUIT an immediate one, which is a crash to every client."""
        if self.process is not None:
            self.process.send_signal(how)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(60)
            self.process = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop every process of the server for the block: connections stay, and nothing is answered."""
        assert self.process is not None
        main = psutil.Process(self.process.pid)
        # The one that starts the others first, so that no new one comes after the list was made.
        main.suspend()
        stopped = [main, *main.children(recursive=True)]
        for process in stopped[1:]:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in reversed(stopped):
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def sql(self, statement: str, database: str = "postgres") -> str:
        done = subprocess.run(
            [binaries() / "psql", "-qAtX", "-d", self.url(database), "-c", statement],
            check=False,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    @contextmanager
    def fresh_database(self, template: str = "template0") -> Iterator[str]:
        """Create a database, empty or as a copy; yield its URL, and drop it at the end."""
        name = f"test_{secrets.token_hex(6)}"
        # Half the work of writing the copy to the log, which is the default since PostgreSQL 15.
        strategy = "STRATEGY FILE_COPY" if self.version >= 15 else ""
        self.sql(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
        try:
            yield self.url(name)
        finally:
            if self.process is not None:
                self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @contextmanager
    def lent_database(self, template: str) -> Iterator[str]:
        """Lend a copy of a migrated database without rows; return its URL.

        It is emptied and lent again, which takes a tenth of the time of another copy; not where the test changed its
        tables, or it is gone.
        """
        idle = self.idle.setdefault(template, [])
        if idle:
            name = idle.pop()
        else:
            name = f"test_{secrets.token_hex(6)}"
            self.sql(f"CREATE DATABASE {name} TEMPLATE {template}")
        try:
            yield self.url(name)
        finally:
            if self.process is not None:
                if asyncio.run(self._emptied(name, template)):
                    idle.append(name)
                else:
                    self.sql(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    async def _emptied(self, name: str, template: str) -> bool:
        """Empty a copy of a template; return whether it now equals the template."""
        try:
            if template not in self.fingerprints:
                self.fingerprints[template] = await self._ask(template, FINGERPRINT)
            return await self._ask(name, EMPTY, FINGERPRINT) == self.fingerprints[template]
        except (asyncpg.PostgresError, OSError):
            return False

    async def _ask(self, database: str, *statements: str) -> object:
        connection = await asyncpg.connect(self.url(database), timeout=60)
        try:
            *first, last = statements
            for statement in first:
                await connection.execute(statement)
            return await connection.fetchval(last)
        finally:
            await connection.close()

    def rename_database(self, old: str, new: str) -> None:
        """Rename a database, ending the sessions that are on it."""
        self.sql(f"ALTER DATABASE {old} ALLOW_CONNECTIONS false")
        self.sql(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{old}'")
        self.sql(f"ALTER DATABASE {old} RENAME TO {new}")
        self.sql(f"ALTER DATABASE {new} ALLOW_CONNECTIONS true")

    def _wait(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            log = (self.folder / "log").read_text(errors="replace")
            assert self.process.poll() is None, f"PostgreSQL ended with {self.process.returncode}: {log}"
            asked = subprocess.run(
                [binaries() / "pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port)], check=False, timeout=60
            )
            if asked.returncode == 0:
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text(errors="replace"))


@contextmanager
def running_postgres() -> Iterator[RunningPostgres]:
    """Create a cluster and run it; delete it at the end."""
    tools = binaries()
    user = _user()
    # Not pytest's folder: another user has to be able to walk into it, and socket paths are short.
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        if os.getuid() == 0:
            shutil.chown(folder, user)
        subprocess.run(
            [
                *as_user(user),
                tools / "initdb",
                *("-D", folder / "data", "-U", user, "-A", "trust"),
                *("-E", "UTF8", "--locale=C", "--no-sync"),
            ],
            check=True,
            capture_output=True,
            cwd="/",
            timeout=120,
        )
        server = RunningPostgres(folder, free_port(), user)
        try:
            server.start()
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[RunningPostgres]:
    """One server for the whole session; each test takes a database of its own."""
    with running_postgres() as server:
        yield server
