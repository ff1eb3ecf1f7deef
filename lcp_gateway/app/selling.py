"""Makes the parts of a gateway that sells access: keys, wallets, top-ups, rates; and of one that only asks for keys."""

import asyncio
import contextlib
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.jobs_per_key import JobsPerKey, MemoryLeases
from lcp_gateway.accounts.keys import KeyCache
from lcp_gateway.accounts.ports import KeyBook
from lcp_gateway.accounts.rates import Rates
from lcp_gateway.accounts.records import Credit
from lcp_gateway.accounts.replicas import Outage, RedisNotInstalled
from lcp_gateway.accounts.settlements import Settlements
from lcp_gateway.accounts.wallet import TopupRules, Wallet
from lcp_gateway.app.ledgers import LedgerError, Ledgers
from lcp_gateway.app.routing import model_registry
from lcp_gateway.app.till import LndTill
from lcp_gateway.config import Settings, auth_mode, journal_place
from lcp_gateway.http.admin import AdminRoutes
from lcp_gateway.http.admission import Admission
from lcp_gateway.http.auth import BearerKeys
from lcp_gateway.http.charging import Charging
from lcp_gateway.http.door import EVERYONE, AccountDoor, Door, KeyDoor, OpenDoor
from lcp_gateway.http.wallet import WalletRoutes
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.tariff import Markup, Tariff
from lcp_gateway.store.engine import Database, DatabaseUnavailable
from lcp_gateway.telemetry.metrics import Metrics

if TYPE_CHECKING:
    from lcp_gateway.accounts.rate_limits import RateLimits

_KEYS_EVERY_S = 1.0
_PPM_PER_PERCENT = 10_000
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True)
class SellingParts:
    """Who is let in, what a request must pass, what customers are told; and what has to run beside it."""

    door: Door
    admission: Admission
    charging: Charging
    wallet_routes: WalletRoutes | None = None
    admin_routes: AdminRoutes | None = None
    works: tuple[Callable[[], Coroutine[Any, Any, None]], ...] = ()


def tariff(settings: Settings) -> Tariff:
    """What the settings say that customers are charged."""
    default = _markup(settings.markup_percent, settings.markup_msat)
    by_model = {
        name: _markup(
            settings.markup_percent if card.markup_percent is None else card.markup_percent,
            settings.markup_msat if card.markup_msat is None else card.markup_msat,
        )
        for name, card in settings.models.items()
        if card.markup_percent is not None or card.markup_msat is not None
    }
    return Tariff(default, by_model)


@contextlib.asynccontextmanager
async def open_selling(
    settings: Settings, ledgers: Ledgers, metrics: Metrics, log: FilteringBoundLogger
) -> AsyncIterator[SellingParts]:
    """Make the parts.

    Raises:
        LedgerError: something that the settings ask for cannot be had.
    """
    async with contextlib.AsyncExitStack() as stack:
        admission = await _admission(settings, stack, log)
        match auth_mode(settings):
            case "none":
                yield SellingParts(OpenDoor(), admission, Charging(None, log))
            case "keys":
                door = KeyDoor(BearerKeys(settings.api_keys))
                yield SellingParts(door, admission, Charging(None, log))
            case _:
                yield await _accounts(settings, ledgers, admission, stack, metrics, log)


async def _accounts(
    settings: Settings,
    ledgers: Ledgers,
    admission: Admission,
    stack: contextlib.AsyncExitStack,
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> SellingParts:
    # Imported where they are used: most gateways keep no accounts.
    from lcp_gateway.store.accounts import Accounts  # noqa: PLC0415 - see above
    from lcp_gateway.store.admin_log import AdminLog  # noqa: PLC0415 - see above
    from lcp_gateway.store.keys import Keys  # noqa: PLC0415 - see above
    from lcp_gateway.store.ledger import Ledger  # noqa: PLC0415 - see above
    from lcp_gateway.store.topups import Topups  # noqa: PLC0415 - see above

    database = ledgers.database
    if database is None:
        raise LedgerError("accounts need a journal")
    topups, keys, ledger = Topups(database), Keys(database), Ledger(database)
    keeper = KeyKeeper(keys, KeyCache(settings.api_keys, EVERYONE.rules), log)
    try:
        await keeper.load()
    except DatabaseUnavailable as error:
        raise LedgerError(f"the keys cannot be read: {error}") from error
    till = await _till(settings, stack)
    rules = TopupRules(
        settings.topup_min_msat,
        settings.topup_max_msat,
        max(1, round(settings.topup_expiry_s)),
        settings.topups_open_max,
    )
    credited = _credited(metrics, log)
    wallet = Wallet(ledger, topups, till, rules, on_credit=credited)
    l402 = None
    if settings.l402 and till is not None:
        from lcp_gateway.accounts.l402 import Issuer  # noqa: PLC0415 - see above
        from lcp_gateway.http.l402 import L402Routes  # noqa: PLC0415 - see above

        l402 = L402Routes(
            wallet,
            topups,
            Issuer(_l402_secret(settings)),
            amount_msat=settings.l402_msat,
            lasts=timedelta(seconds=settings.l402_expiry_s),
            rates=admission.rates,
        )
    works: list[Callable[[], Coroutine[Any, Any, None]]] = [
        keeper.run,
        lambda: _watch_solvency(ledger, metrics),
    ]
    if till is not None:
        works.append(_settlements(till, topups, database, stack, credited, metrics, log).run)
    return SellingParts(
        door=AccountDoor(find=keeper.find, admin_key=settings.admin_key, l402=l402),
        admission=admission,
        charging=Charging(wallet, log),
        wallet_routes=WalletRoutes(
            wallet,
            read_timeout_s=settings.request_read_timeout_s,
            pay_for_demo=partial(_pay_for_demo, settings) if settings.embedded else None,
        ),
        admin_routes=AdminRoutes(
            accounts=Accounts(database),
            keys=keys,
            ledger=ledger,
            acts=AdminLog(database),
            on_key_change=keeper.refresh,
            read_timeout_s=settings.request_read_timeout_s,
        ),
        works=tuple(works),
    )


class KeyKeeper:
    """Keeps the keys of the store in memory: at most a second behind what others change, at once for what it is told."""

    def __init__(self, keys: KeyBook, cache: KeyCache, log: FilteringBoundLogger) -> None:
        self._keys = keys
        self._cache = cache
        self._log = log
        self._upto = 0
        self._was_away = False

    def find(self, text: str) -> "Any":
        """Give whom a key lets in now, or None."""
        return self._cache.check(text, datetime.now(UTC))

    async def load(self) -> None:
        """Read them all."""
        changes = await self._keys.load_all()
        self._cache.replace_all(changes.records)
        self._upto = changes.upto

    async def refresh(self) -> None:
        """Read what has changed."""
        changes = await self._keys.changed_since(self._upto)
        self._cache.apply(changes.records)
        self._upto = max(self._upto, changes.upto)

    async def run(self) -> None:
        """Read what has changed every second, until cancelled."""
        while True:
            await asyncio.sleep(_KEYS_EVERY_S)
            try:
                await self.refresh()
                self._was_away = False
            except DatabaseUnavailable as error:
                if not self._was_away:
                    self._was_away = True
                    self._log.warning("keys cannot be read anew", problem=str(error))


async def _pay_for_demo(settings: Settings, payment_request: str) -> None:
    from lcp_gateway.lightning.demo import pay  # noqa: PLC0415 - for demos only

    await pay(settings.lcpd_grpc_addr, payment_request)


async def _till(settings: Settings, stack: contextlib.AsyncExitStack) -> LndTill | None:
    if not (settings.embedded or settings.lnd_grpc_addr):
        return None
    from lcp_gateway.lightning.invoices import Invoices  # noqa: PLC0415 - few gateways sell
    from lcp_gateway.lightning.lnd_channel import LndAddress  # noqa: PLC0415 - as above
    from lcp_gateway.lightning.lnd_stubs import LndNotInstalled  # noqa: PLC0415 - as above

    if settings.lnd_grpc_addr:
        macaroon = settings.lnd_invoice_macaroon_file or settings.lnd_macaroon_file
        address = LndAddress(settings.lnd_grpc_addr, settings.lnd_tls_cert, macaroon)
    else:
        # The embedded node speaks lnd's language too.
        address = LndAddress(settings.lcpd_grpc_addr)
    try:
        return LndTill(
            await stack.enter_async_context(Invoices(address, network=settings.network or None))
        )
    except (LndNotInstalled, OSError) as error:
        raise LedgerError(f"lnd cannot be used for top-ups: {error}") from error


def _credited(metrics: Metrics, log: FilteringBoundLogger) -> Callable[[Credit], None]:
    def credited(credit: Credit) -> None:
        metrics.topup(credit.topup.received_msat or 0)
        log.info(
            "a top-up was paid",
            topup_id=credit.topup.id,
            account_id=credit.topup.account_id,
            amount_msat=credit.topup.received_msat,
        )

    return credited


def _settlements(
    till: LndTill,
    topups: Any,
    database: Database,
    stack: contextlib.AsyncExitStack,
    credited: Callable[[Credit], None],
    metrics: Metrics,
    log: FilteringBoundLogger,
) -> Settlements:
    from lcp_gateway.store.leader import Leadership  # noqa: PLC0415 - few gateways sell

    metrics.settlements_leader(False)
    leadership = Leadership(database, "settlements")
    stack.push_async_callback(leadership.release)

    return Settlements(
        till,
        topups,
        leadership,
        on_credit=credited,
        on_trouble=lambda problem: log.warning("settlements cannot be followed", problem=problem),
        on_lead=metrics.settlements_leader,
        away=(DatabaseUnavailable,),
    )


async def _admission(
    settings: Settings, stack: contextlib.AsyncExitStack, log: FilteringBoundLogger
) -> Admission:
    outage = Outage(report=lambda error: log.warning("Redis is away", problem=error))
    leases: Any = MemoryLeases()
    if settings.redis_url:
        from lcp_gateway.accounts.jobs_per_key import RedisLeases  # noqa: PLC0415 - for replicas

        try:
            leases = RedisLeases(settings.redis_url)
        except (RedisNotInstalled, ValueError) as error:
            raise LedgerError(f"Redis cannot be used: {error}") from error
        stack.push_async_callback(leases.aclose)
    jobs = JobsPerKey(leases, default=settings.key_concurrent_jobs, outage=outage)
    rates = _rate_limits(settings, stack, outage)
    return Admission(
        rates,
        jobs,
        asks_redis=bool(settings.redis_url),
        resolve=model_registry(settings).resolve,
    )


def _rate_limits(
    settings: Settings, stack: contextlib.AsyncExitStack, outage: Outage
) -> "RateLimits | None":
    gateway = Rates(settings.max_requests_per_minute, settings.max_tokens_per_minute)
    account = Rates(settings.account_requests_per_minute, settings.account_tokens_per_minute)
    key = Rates(settings.key_requests_per_minute, settings.key_tokens_per_minute)
    if gateway == account == key == Rates() and auth_mode(settings) != "accounts":
        # No key can have a limit of its own, so nothing is ever counted.
        return None
    # Imported where they are used: the library takes as long to load as the rest of the gateway's accounts.
    from lcp_gateway.accounts.rate_limits import RateLimits  # noqa: PLC0415 - see above
    from lcp_gateway.accounts.windows import MemoryWindows, RedisWindows  # noqa: PLC0415 - see above

    windows: MemoryWindows | RedisWindows = MemoryWindows()
    if settings.redis_url:
        windows = RedisWindows(settings.redis_url)
        stack.push_async_callback(windows.aclose)
    return RateLimits(windows, gateway=gateway, account=account, key=key, outage=outage)


async def _watch_solvency(ledger: Any, metrics: Metrics) -> None:
    while True:
        with contextlib.suppress(DatabaseUnavailable):
            totals = await ledger.totals()
            metrics.customers(totals.accounts, totals.balance_msat, totals.held_msat)
        await asyncio.sleep(5.0)


def _l402_secret(settings: Settings) -> bytes:
    """Give the secret that tokens are made with; the first time it is made, and kept beside the journal."""
    if settings.l402_secret:
        return hashlib.sha256(settings.l402_secret.encode()).digest()
    place = journal_place(settings)
    if not isinstance(place, Path):
        raise LedgerError(
            "l402 with a database server needs l402_secret, the same for all gateways"
        )
    file = place.with_suffix(".l402")
    with contextlib.suppress(FileExistsError):
        file.touch(mode=0o600, exist_ok=False)
        file.write_bytes(secrets.token_bytes(_SECRET_BYTES))
    secret = file.read_bytes()
    if len(secret) < _SECRET_BYTES:
        # Another gateway is just writing it, or one ended in the middle of that.
        raise LedgerError(f"{file} holds no secret for L402: start again, or delete it")
    return secret


def _markup(percent: float, fixed_msat: int) -> Markup:
    return Markup(round(percent * _PPM_PER_PERCENT), Msat(fixed_msat))
