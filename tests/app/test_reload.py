"""Reloading settings: which can be reloaded, that all of those take effect, and what a reload logs."""

import asyncio
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace

import pytest
import structlog

from lcp_gateway.app.background_tasks import BackgroundTasks
from lcp_gateway.app.gateway import Gateway
from lcp_gateway.app.reload import Reload, changes
from lcp_gateway.app.serving import log_level, open_serving
from lcp_gateway.app.startup import open_runtime
from lcp_gateway.app.wiring import WiringError
from lcp_gateway.config import ConfigError, Settings, load, specs
from lcp_gateway.http.server.tls import BadCertificate
from lcp_gateway.telemetry.metrics import Metrics
from tests.support.certificates import certificate

# -- which ----------------------------------------------------------------------------------------


RELOADED = {spec.name for spec in specs().values() if not spec.restart}


def test_changed_settings_are_reloaded_or_wait_for_a_restart():
    before = Settings(max_price_msat=1, http_addr="127.0.0.1:1")
    after = Settings(max_price_msat=2, http_addr="127.0.0.1:2", cors_origins=("*",))
    changed, restart = changes(before, after)
    assert (sorted(changed), restart) == (["cors_origins", "max_price_msat"], ["http_addr"])
    assert changes(before, before) == ([], [])


def test_a_certificate_can_be_exchanged_and_neither_come_nor_go(tmp_path):
    with_one, with_other = (Settings(http_tls_cert=tmp_path / name, http_tls_key=tmp_path / name) for name in "ab")
    names = ["http_tls_cert", "http_tls_key"]
    assert changes(with_one, with_other) == (names, [])
    assert changes(Settings(), with_one) == ([], names)
    assert changes(with_one, Settings()) == ([], names)


# -- that they take effect ------------------------------------------------------------------------


class Recording(Settings):
    """Settings that record which of them are read."""

    def __getattribute__(self, name):
        if name in Settings.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


READ: set[str] = set()


@asynccontextmanager
async def serving_of(settings):
    """Serve like the program, without a daemon."""
    async with AsyncExitStack() as stack:
        log = structlog.get_logger()
        runtime, _ = await open_runtime(settings, stack, Metrics(), BackgroundTasks(log), log)
        gateway = Gateway(settings, runtime)
        yield gateway, await stack.enter_async_context(open_serving(settings, gateway))


QUIET = {"http_addr": "127.0.0.1:0", "preflight": False, "lcpd_grpc_addr": "unix:/nowhere/at/all.sock"}


async def test_every_setting_that_can_change_is_read_when_settings_are_taken_in(tmp_path):
    pair = certificate(tmp_path)
    values = {
        **QUIET,
        "journal_url": str(tmp_path / "journal.db"),
        "embedded": True,
        "auth": "accounts",
        "l402": True,
        "http_tls_cert": pair.certificate,
        "http_tls_key": pair.key,
        "openclaw_enabled": True,
        "openclaw_base_url": "http://127.0.0.1:1",
    }
    async with serving_of(Settings(**values)) as (_, serving):
        recording = Recording(**values)
        READ.clear()
        await serving.renew(recording)
        read = set(READ)
    elsewhere = {
        "allow_open",  # used when the settings are read
        "shutdown_grace_s",  # used when the gateway ends: Reload.settings
        "start_timeout_s",
        "stop_timeout_s",
    }
    assert RELOADED - read == elsewhere, "these need a restart: give the reason in their declaration"


async def test_parts_with_state_are_kept_and_the_rest_is_rebuilt():
    async with serving_of(Settings(**QUIET, journal_url="off")) as (gateway, serving):
        before, runtime = gateway.configured, gateway.runtime
        service, store = gateway.service, gateway.stored.store
        other = Settings(**QUIET, journal_url="off", max_concurrent_requests=7, max_stored_items=3, budget_day_msat=5)
        await serving.renew(other)
        assert gateway.configured.app is not before.app
        assert (gateway.runtime, gateway.service, gateway.stored.store) == (runtime, service, store)
        assert (runtime.jobs._limit, store.limits.items_per_owner) == (7, 3)
        assert [budget.limit_msat for budget in gateway.budgets()] == [5]


async def test_settings_that_cannot_be_used_leave_everything_as_it_was(tmp_path, monkeypatch):
    pair, other = certificate(tmp_path, "a"), certificate(tmp_path, "b")
    files = {"http_tls_cert": pair.certificate, "http_tls_key": pair.key}
    good = Settings(**QUIET, journal_url="off", **files)
    async with serving_of(good) as (gateway, serving):
        before, used = gateway.configured, []
        monkeypatch.setattr(Gateway, "use", lambda *_: used.append(1))
        with pytest.raises(BadCertificate):
            await serving.renew(good.model_copy(update={"http_tls_key": other.key}))
        monkeypatch.setattr(
            "lcp_gateway.app.wiring.shared_results.SharedResults.results", lambda *_: raised(WiringError("no Redis"))
        )
        with pytest.raises(WiringError):
            await serving.renew(good)
        assert (gateway.configured, used) == (before, [])


def raised(error):
    raise error


def test_verbose_is_the_level_debug():
    assert log_level(Settings(log_level="warn", verbose=True)) == "debug"
    assert log_level(Settings(log_level="warn")) == "warn"


# -- what a reload logs -------------------------------------------------------------------------


class Attempts:
    """A reload with stand-ins: the file is a string, and each application of settings is recorded in a list."""

    def __init__(self, path, text=""):
        self.path = path
        self.taken, self.told, self.fails = [], [], None
        self.wanted = asyncio.Event()
        self.write(text)
        self.reload = Reload(
            self.read().settings,
            wanted=self.wanted,
            read=self.read,
            renew=self.renew,
            notifier=SimpleNamespace(
                reloading=lambda: self.told.append("reloading"), ready=lambda: self.told.append("ready")
            ),
            log=structlog.get_logger(),
        )

    def write(self, text):
        self.path.write_text(text)
        self.path.chmod(0o600)

    def read(self):
        return load(flags={}, environ={}, config_path=self.path)

    async def renew(self, settings):
        await asyncio.sleep(0.001)
        if self.fails is not None:
            raise self.fails
        self.taken.append(settings)
        return ()

    async def after(self, text):
        """Reload with this file; return the logged line."""
        self.write(text)
        running = asyncio.create_task(self.reload.run())
        told = len(self.told)
        with structlog.testing.capture_logs() as lines:
            self.reload.log = structlog.get_logger()
            self.wanted.set()
            async with asyncio.timeout(60):
                while self.told[told:] != ["reloading", "ready"]:
                    await asyncio.sleep(0.001)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
        return lines[-1]


@pytest.fixture
def attempts(tmp_path):
    return Attempts(tmp_path / "config.toml", 'api_keys = ["sk-first-key"]\nmax_price_msat = 5\n')


async def test_changed_settings_are_named_without_their_values(attempts):
    line = await attempts.after('api_keys = ["sk-other-key"]\nhttp_addr = "127.0.0.1:9"\n')
    assert line == {
        "event": "configuration reloaded",
        "log_level": "info",
        "changed": ["api_keys", "max_price_msat"],
        "needs_restart": ["http_addr"],
    }
    (taken,) = attempts.taken
    assert taken.api_keys == ("sk-other-key",)
    assert taken.http_addr == "127.0.0.1:8080", "needs a restart"
    assert attempts.reload.settings is taken


async def test_settings_that_need_a_restart_are_named_at_each_reload(attempts):
    for _ in range(2):
        line = await attempts.after('api_keys = ["sk-first-key"]\nhttp_addr = "127.0.0.1:9"\n')
        assert line["needs_restart"] == ["http_addr"]
    assert line["changed"] == []


async def test_an_invalid_file_is_reported_line_by_line_and_changes_nothing(attempts):
    line = await attempts.after('max_price_msat = "many"\nno_such_thing = 1\napi_keys = [1]\n')
    assert (line["event"], line["log_level"]) == ("configuration not reloaded", "error")
    assert len(line["problems"]) == 3
    assert all(str(attempts.path) in problem for problem in line["problems"])
    assert attempts.taken == [] and attempts.reload.settings.max_price_msat == 5


async def test_after_a_wrong_file_the_next_right_one_is_taken(attempts):
    await attempts.after("nonsense")
    line = await attempts.after("max_price_msat = 9\napi_keys = ['sk-first-key']")
    assert line["changed"] == ["max_price_msat"]


@pytest.mark.parametrize("fails", [BadCertificate("a.pem has expired"), WiringError("no Redis")])
async def test_after_a_failed_reload_the_old_settings_are_in_force(attempts, fails):
    attempts.fails = fails
    line = await attempts.after("max_price_msat = 9")
    assert line["problems"] == [str(fails)]
    assert attempts.reload.settings.max_price_msat == 5


async def test_an_unexpected_error_during_a_reload_does_not_end_the_gateway(attempts):
    attempts.fails = ZeroDivisionError("sk-secret")
    line = await attempts.after("max_price_msat = 9")
    assert line["event"] == "configuration not reloaded" and "sk-secret" not in str(line)
    attempts.fails = None
    assert (await attempts.after("max_price_msat = 9"))["event"] == "configuration reloaded"


async def test_the_last_key_cannot_be_taken_from_a_gateway_that_asks_for_keys(tmp_path):
    # Without ``auth`` all clients would be admitted, but ``auth`` needs a restart: the old value stays in force.
    attempts = Attempts(tmp_path / "c.toml", 'auth = "keys"\napi_keys = ["sk-first-key"]\n')
    line = await attempts.after('auth = "none"\n')
    assert line["event"] == "configuration not reloaded"
    assert "no api_keys are set" in line["problems"][0]
    assert line["problems"][-1] == "settings that need a restart keep their old values: auth"
    assert attempts.taken == []


async def test_signals_that_come_meanwhile_are_answered_by_one_more_reading(attempts):
    reads = []
    real = attempts.reload.read

    def read():
        reads.append(1)
        if len(reads) == 1:
            asyncio.run_coroutine_threadsafe(three_more(), loop).result()
        return real()

    async def three_more():
        for _ in range(3):
            attempts.wanted.set()

    loop = asyncio.get_running_loop()
    attempts.reload.read = read
    running = asyncio.create_task(attempts.reload.run())
    attempts.wanted.set()
    async with asyncio.timeout(60):
        while attempts.told.count("ready") < 2:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.02)
    running.cancel()
    assert len(reads) == 2
    assert attempts.told == ["reloading", "ready"] * 2


async def test_a_config_error_without_a_file_is_reported_too(attempts):
    attempts.path.unlink()
    attempts.reload.read = lambda: raised(ConfigError(["it is gone"]))
    attempts.write = lambda _text: None
    assert (await attempts.after(""))["problems"] == ["it is gone"]
