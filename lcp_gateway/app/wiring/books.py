"""The routes that show the books: purchases, usage, budgets, providers and the operator's overview."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from lcp_gateway.accounts.repositories import KeyRepository
from lcp_gateway.app.wiring.accounts import Access
from lcp_gateway.app.wiring.journal import JournalParts, manual_resolutions, write_receipt
from lcp_gateway.config import Settings, auth_mode, openclaw_id
from lcp_gateway.http.gateway.events import EventHub, Surroundings
from lcp_gateway.http.gateway.health import HealthRoutes
from lcp_gateway.http.gateway.overview import OverviewRoutes, OverviewSources
from lcp_gateway.http.gateway.providers import KnownNode, ProviderRoutes, ProviderSources
from lcp_gateway.http.gateway.purchases import KeyNames, PurchaseRoutes
from lcp_gateway.http.gateway.usage import BudgetRoutes, UsageRoutes
from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.purchase.limits import SpendingLimits
from lcp_gateway.routing.catalog import Provider
from lcp_gateway.routing.measurements import Measurements
from lcp_gateway.routing.peer_trust import PeerTrust
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.journal.changes import ChangedRows
from lcp_gateway.telemetry.logs import get_logger
from lcp_gateway.telemetry.metrics import Metrics
from lcp_gateway.upstreams.sources import MergedCatalog


@dataclass(frozen=True, slots=True)
class BookRoutes:
    """The routes of one configuration."""

    purchases: PurchaseRoutes
    usage: UsageRoutes
    budgets: BudgetRoutes
    providers: ProviderRoutes
    overview: OverviewRoutes


@dataclass(frozen=True, slots=True)
class ProviderParts:
    """What the gateway knows of its providers; ``lnd`` is None where no lnd is configured."""

    catalog: MergedCatalog
    nodes: Callable[[], Mapping[str, KnownNode]]
    daemon_problem: Callable[[], UpstreamError | None]
    measurements: Measurements
    trust: PeerTrust
    lnd: Callable[[], Mapping[str, object]] | None


def book_routes(
    settings: Settings,
    *,
    journal: JournalParts,
    access: Access,
    limits: SpendingLimits,
    providers: ProviderParts,
    health: HealthRoutes,
    metrics: Metrics,
) -> BookRoutes:
    """Make the routes of one configuration."""
    names = _key_names(access.keys)
    return BookRoutes(
        purchases=PurchaseRoutes(
            journal.books,
            key_names=names,
            write_receipt=write_receipt,
            resolutions=manual_resolutions(journal, providers.trust, metrics, get_logger("journal")),
            api_limits=access.api_limits,
            read_timeout_s=settings.request_read_timeout_s,
        ),
        usage=UsageRoutes(journal.books, key_names=names, api_limits=access.api_limits),
        budgets=BudgetRoutes(journal.books, budgets_for=limits.budgets_for, keys=access.keys),
        providers=ProviderRoutes(
            ProviderSources(
                catalog=lambda: providers.catalog.catalog,
                nodes=providers.nodes,
                daemon_problem=providers.daemon_problem,
                measurements=providers.measurements,
                trust=providers.trust,
                books=journal.books,
                openclaw_id=openclaw_id(settings),
            )
        ),
        overview=OverviewRoutes(
            OverviewSources(
                auth=auth_mode(settings),
                health=health.report,
                books=journal.books,
                ledger=access.ledger,
                lnd=providers.lnd,
            )
        ),
    )


def event_hub(
    journal: JournalParts,
    keys: KeyRepository | None,
    *,
    catalog: MergedCatalog,
    reasons: Callable[[], Sequence[str]],
    is_ending: Callable[[], bool],
) -> EventHub:
    """Return the hub of the streams of events."""
    counted: tuple[tuple[Provider, ...], int] = (), 0

    def surroundings() -> Surroundings:
        nonlocal counted
        found = catalog.catalog
        if counted[0] is not found.providers:
            counted = found.providers, len(found.models())
        return Surroundings(reasons(), counted[1], len(found.providers))

    return EventHub(
        None if journal.database is None else ChangedRows(journal.database),
        key_names=_key_names(keys),
        surroundings=surroundings,
        is_ending=is_ending,
        unavailable=(DatabaseUnavailable,),
    )


def _key_names(keys: KeyRepository | None) -> KeyNames:
    if keys is not None:
        return keys.names

    async def names(_key_ids: Collection[str]) -> Mapping[str, str]:
        return {}

    return names
