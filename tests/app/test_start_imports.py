"""A plain start (SQLite, a daemon on the same machine, no accounts) loads nothing that only other settings need."""

import os
import re
import signal
import subprocess
import sys

import pytest

NOT_LOADED = (
    "alembic",
    "asyncpg",
    "cryptography",
    "grpc",
    "lcp_gateway.accounts.l402",
    "lcp_gateway.http.gateway.l402",
    "lcp_gateway.lightning.lnd.channel",
    "lcp_gateway.lightning.lnd.client",
    "lcp_gateway.node",
    "lcp_gateway.store.database.migrations",
    "lcp_gateway.store.database.postgres",
    "lcp_gateway.telemetry.tracing",
    "lcp_gateway.upstreams.lcpd.grpcio_transport",
    "lndgrpc",
    "mako",
    "opentelemetry",
    "redis",
    "segno",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
)
_IMPORTED = re.compile(rb"^import time: .*\| +([\w.]+)$", re.MULTILINE)


@pytest.fixture
def modules(tmp_path):
    """The modules that a gateway has imported by the time it serves, with a database that it has just made."""
    serve = ("serve", "--http-addr", "127.0.0.1:0", "--lcpd-grpc-addr", f"unix:{tmp_path}/none.sock", "--no-preflight")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("LCP_GATEWAY_", "OPENAI_"))}
    with (
        (tmp_path / "imports").open("wb") as imports,
        subprocess.Popen(
            [sys.executable, "-X", "importtime", "-m", "lcp_gateway", *serve],
            stdout=subprocess.PIPE,
            stderr=imports,
            env={**kept, "XDG_CONFIG_HOME": str(tmp_path), "XDG_STATE_HOME": str(tmp_path)},
        ) as gateway,
    ):
        try:
            told = b""
            while b"base URL" not in told:
                line = gateway.stdout.readline()
                assert line, (tmp_path / "imports").read_bytes()[-2_000:].decode("utf-8", "replace")
                told += line
        finally:
            gateway.send_signal(signal.SIGTERM)
            gateway.communicate(timeout=60)
    return {name.decode() for name in _IMPORTED.findall((tmp_path / "imports").read_bytes())}


def test_a_plain_start_loads_only_what_it_uses(modules):
    assert "lcp_gateway.upstreams.lcpd.http2_transport" in modules, "the list of imports was read"
    loaded = sorted(name for name in modules if any(name == one or name.startswith(f"{one}.") for one in NOT_LOADED))
    assert loaded == []
