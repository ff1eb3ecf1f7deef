"""What the workers of one gateway learn from each other: trust in peers, measurements, paid jobs, changed keys."""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from structlog.typing import FilteringBoundLogger

from lcp_gateway.accounts.shared.outage import Outage
from lcp_gateway.app.background_tasks import BackgroundTask
from lcp_gateway.config import Settings
from lcp_gateway.purchase.quote import Quote
from lcp_gateway.purchase.quoting import PaidJobs
from lcp_gateway.routing.measurements import MeasuredEvent, Measurements
from lcp_gateway.routing.peer_trust import PeerTrust, TrustEvent
from lcp_gateway.supervisor.link import WorkerLink

if TYPE_CHECKING:
    from lcp_gateway.accounts.shared.calls import RedisCalls
    from lcp_gateway.accounts.shared.events import BatchedEvents
    from lcp_gateway.accounts.shared.exposure import SharedExposure

# From the reservation to the end of a purchase that uses all of its time.
_SLACK_S = 60.0


@dataclass(slots=True)
class SharedTrust:
    """The connections of one worker to the others. ``on_keys`` is called when another worker has changed a key."""

    trust: PeerTrust
    measurements: Measurements
    on_keys: list[Callable[[], None]] = field(default_factory=list)
    events: "BatchedEvents | None" = None
    exposure: "SharedExposure | None" = None

    @property
    def reserve(self) -> Callable[[Quote], Awaitable[None]] | None:
        """Return the check right before a payment; None where this process is the only one."""
        return None if self.exposure is None else self.exposure.reserve

    def tasks(self) -> list[BackgroundTask]:
        """Return the tasks that have to run beside the requests."""
        return [] if self.events is None else [BackgroundTask("shared", self.events.run)]

    async def load(self) -> None:
        """Count what is out by the journal; once its histories are loaded."""
        if self.exposure is not None:
            await self.exposure.load(list(self.trust.unknown_jobs()))

    def keys_changed(self) -> None:
        """Tell the others that a key was changed."""
        if self.events is not None:
            self.events.tell("keys")

    def take_trust(self, values: list[Any]) -> None:
        """Take in another worker's update about a peer."""
        self.trust.learn(TrustEvent(*values))

    def take_keys(self, _values: list[Any]) -> None:
        """Read the keys that another worker has changed."""
        for call in self.on_keys:
            call()

    def tell_trust(self, event: TrustEvent) -> None:
        """Tell the others this worker's update about a peer."""
        if self.events is not None:
            self.events.tell("trust", event)
        if self.exposure is not None:
            self.exposure.apply(event.what, event.peer_id, event.job_id, event.state)

    def tell_measured(self, event: MeasuredEvent) -> None:
        """Tell the others what this worker has measured."""
        if self.events is not None:
            self.events.tell("measured", event)


@contextlib.asynccontextmanager
async def open_shared_trust(
    settings: Settings,
    link: WorkerLink | None,
    trust: PeerTrust,
    measurements: Measurements,
    paid_jobs: PaidJobs,
    log: FilteringBoundLogger,
    redis: "RedisCalls | None",
) -> AsyncIterator[SharedTrust]:
    """Connect this worker to the others for the block; where it is the only process, nothing is shared."""
    shared = SharedTrust(trust, measurements)
    if link is None or redis is None:
        yield shared
        return
    from lcp_gateway.accounts.shared.events import BatchedEvents, RedisEvents  # noqa: PLC0415 - as above
    from lcp_gateway.accounts.shared.exposure import RedisExposure, SharedExposure  # noqa: PLC0415 - as above
    from lcp_gateway.encryption import Encryption  # noqa: PLC0415 - for several workers only

    outage = Outage(report=lambda error: log.warning("Redis is away", problem=error))
    boot = link.boot
    encryption = Encryption(boot.run_secret.encode())
    events = RedisEvents(redis, boot.run_id, encryption, outage)
    exposed = RedisExposure(redis, boot.run_id, encryption, outage)
    shared.events = BatchedEvents(
        events, {"trust": shared.take_trust, "measured": measurements.learn, "keys": shared.take_keys}
    )
    shared.exposure = SharedExposure(exposed, trust.allowance, settings.timeout_execute_s + _SLACK_S)
    trust.on_event, measurements.on_event = shared.tell_trust, shared.tell_measured
    trust.on_paid_elsewhere = paid_jobs.add
    try:
        yield shared
    finally:
        trust.on_event = measurements.on_event = None
        exposed.close()
