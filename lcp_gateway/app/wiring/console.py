"""The web console as the settings say: sessions, sign-in, registration, the page and its files."""

from collections.abc import Mapping
from functools import partial
from typing import Final

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.attempts import Attempts
from lcp_gateway.accounts.repositories import RegistrationRepository, SessionRepository
from lcp_gateway.accounts.sessions import ConsoleSessions, Role, SettingsKeys, role_of
from lcp_gateway.accounts.shared.calls import RedisCalls
from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.app.wiring.customers import CustomerParts
from lcp_gateway.app.workers import tidy_console
from lcp_gateway.config import Settings, auth_mode, known_hosts, serves_console
from lcp_gateway.http.application import ConsoleRoutes
from lcp_gateway.http.authentication import ADMINISTRATOR, ANONYMOUS, Authenticator, StaticKeys
from lcp_gateway.http.browser_guard import BrowserGuard
from lcp_gateway.http.console.assets import AssetFiles, ConsolePages
from lcp_gateway.http.console.authentication import HeaderAuthenticator, LocalConsole, SessionAuthenticator
from lcp_gateway.http.console.cookies import Cookies
from lcp_gateway.http.console.description import DescriptionRoutes
from lcp_gateway.http.console.limits import SignInLimits
from lcp_gateway.http.console.registration import RegistrationRoutes
from lcp_gateway.http.console.sessions import SessionRoutes, SignInDesk
from lcp_gateway.http.cors import Cors
from lcp_gateway.http.gateway.account import AccountRoutes
from lcp_gateway.http.gateway.api_limits import ApiLimits
from lcp_gateway.http.gateway.invites import InviteRoutes
from lcp_gateway.store.database.engines import Database, DatabaseUnavailable
from lcp_gateway.telemetry.logs import get_logger

_NETWORKS: Final[Mapping[str, str]] = {
    "bc": "mainnet",
    "tb": "testnet",
    "tbs": "signet",
    "bcrt": "regtest",
    "sb": "simnet",
}


class Console:
    """What outlives a change of settings: the files, the counts of attempts, the repositories."""

    def __init__(
        self,
        database: Database | None,
        customers: CustomerParts | None,
        api_limits: ApiLimits,
        log: FilteringBoundLogger,
        *,
        redis: RedisCalls | None = None,
    ) -> None:
        """``redis`` is where several gateways count attempts together; None for this process alone."""
        self._customers = customers
        self._api_limits = api_limits
        self._log = log
        self._files = AssetFiles()
        outage = Outage(report=lambda error: log.warning("Redis is away", problem=error))
        self._attempts = Attempts(redis, outage=outage)
        self._limits = SignInLimits(self._attempts)
        self._sessions: SessionRepository | None = None
        self._registrations: RegistrationRepository | None = None
        if database is not None:
            # Imported where they are used: a gateway without a journal has no sessions.
            from lcp_gateway.store.accounts.registrations import Registrations  # noqa: PLC0415 - see above
            from lcp_gateway.store.accounts.sessions import Sessions  # noqa: PLC0415 - see above

            self._sessions, self._registrations = Sessions(database), Registrations(database)

    def tasks(self, settings: Settings) -> tuple[BackgroundTask, ...]:
        """Return the task that deletes what is over."""
        sessions, registrations = self._sessions, self._registrations
        if auth_mode(settings) == "none" or sessions is None or registrations is None:
            return ()
        return (BackgroundTask("sessions", lambda: tidy_console(sessions, registrations)),)

    def parts(self, settings: Settings, inner: Authenticator) -> tuple[Authenticator, ConsoleRoutes]:
        """Return the authenticator around the one for keys, and the routes."""
        guard = BrowserGuard(Cors(settings.cors_origins), known_hosts(settings), log=get_logger("request"))
        is_served, mode = serves_console(settings), auth_mode(settings)
        if mode == "none":
            authenticator = LocalConsole(inner, guard)
            if not is_served:
                return authenticator, ConsoleRoutes()
            return authenticator, ConsoleRoutes(
                # A page of another name that leads here would be of the console's origin.
                pages=ConsolePages(self._files, check=authenticator.check_near),
                description=DescriptionRoutes(None, facts=self._facts(settings)),
                sessions=SessionRoutes(
                    None, role_of=partial(role_of, has_customers=False), accounts=None, keys=None, log=self._log
                ),
            )
        account, invites = self._customers_routes(settings)
        if not is_served or self._sessions is None:
            return HeaderAuthenticator(inner, unavailable=(DatabaseUnavailable,)), ConsoleRoutes(
                invites=invites, account=account
            )
        cookies = Cookies(allow_insecure=settings.console_insecure)
        sessions = ConsoleSessions(
            self._sessions,
            settings_keys=SettingsKeys(_settings_keys(settings)),
            find_key=(lambda _text: None) if self._customers is None else self._customers.key_sync.find,
        )
        desk = SignInDesk(
            sessions, cookies, guard, self._limits, self._api_limits, read_timeout_s=settings.request_read_timeout_s
        )
        customers = self._customers
        return SessionAuthenticator(
            inner, sessions, cookies, guard, self._api_limits, unavailable=(DatabaseUnavailable,)
        ), ConsoleRoutes(
            pages=ConsolePages(self._files),
            description=DescriptionRoutes(cookies, facts=self._facts(settings)),
            sessions=SessionRoutes(
                desk,
                role_of=partial(role_of, has_customers=customers is not None),
                accounts=None if customers is None else customers.accounts,
                keys=None if customers is None else customers.keys,
                log=self._log,
            ),
            registration=self._registration(settings, desk),
            invites=invites,
            account=account,
        )

    def _customers_routes(self, settings: Settings) -> tuple[AccountRoutes | None, InviteRoutes | None]:
        customers, registrations = self._customers, self._registrations
        if customers is None or registrations is None:
            return None, None
        read_timeout_s = settings.request_read_timeout_s
        return (
            AccountRoutes(customers.accounts, on_key_change=customers.key_sync.changed, read_timeout_s=read_timeout_s),
            InviteRoutes(registrations, read_timeout_s=read_timeout_s),
        )

    def _registration(self, settings: Settings, desk: SignInDesk) -> RegistrationRoutes | None:
        if self._customers is None or self._registrations is None:
            return None
        return RegistrationRoutes(
            desk,
            self._registrations,
            mode=settings.registration,
            on_key_change=self._customers.key_sync.changed,
            unavailable=(DatabaseUnavailable,),
            log=self._log,
        )

    def _facts(self, settings: Settings) -> dict[str, object]:
        customers = self._customers
        if customers is None:
            reason = "this gateway has no accounts"
        elif customers.invoices is None:
            reason = "top-ups are disabled: the operator has configured no lnd"
        else:
            reason = None
        network = _NETWORKS.get(settings.network)
        return {
            "auth": auth_mode(settings),
            "registration": settings.registration,
            "topups": {
                "enabled": reason is None,
                "reason": reason,
                "min_msat": settings.topup_min_msat,
                "max_msat": settings.topup_max_msat,
                "expiry_s": max(1, round(settings.topup_expiry_s)),
                "open_max": settings.topups_open_max,
            },
            "withdrawals": {
                "enabled": customers is not None and settings.withdrawals,
                "min_msat": settings.withdrawal_min_msat,
                "max_msat": settings.withdrawal_max_msat,
                "approval_msat": settings.withdrawal_approval_msat,
                "freeze_s": round(settings.withdrawal_freeze_s),
            },
            "nodes": customers is not None and settings.dialin_accounts,
            "journal": self._sessions is not None,
            "demo": settings.embedded,
            "network": network or ("regtest" if settings.embedded else None),
            "metrics": None if settings.metrics_addr else "/metrics",
            "grafana": None,
        }


def _settings_keys(settings: Settings) -> list[tuple[str, Role, Caller]]:
    has_customers = auth_mode(settings) == "accounts"
    rules = ANONYMOUS.rules if has_customers else StaticKeys(settings.api_keys).rules
    callers = {key: Caller(StaticKeys([key]).find(key), None, rules) for key in settings.api_keys}
    if settings.admin_key:
        callers[settings.admin_key] = ADMINISTRATOR
    return [(key, role_of(caller, has_customers=has_customers), caller) for key, caller in callers.items()]
