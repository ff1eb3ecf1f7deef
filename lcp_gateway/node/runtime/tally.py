"""How much of a node its peers take: jobs by phase, and bytes of requests."""

from collections import Counter

from lcp_gateway.lightning.error_codes import ErrorCode
from lcp_gateway.node.lcp.judging import RequestRefused
from lcp_gateway.node.lcp.selling_events import SalePhase
from lcp_gateway.node.runtime.bounds import Bounds
from lcp_gateway.node.runtime.sale import Sale

_OPEN = (SalePhase.AWAITING_INPUT, SalePhase.PRICED, SalePhase.RUNNING)
_OVER = frozenset({SalePhase.DELIVERED, SalePhase.ENDED})
_FLYING = frozenset({SalePhase.QUOTED, SalePhase.RUNNING})


class Tally:
    """Counts the jobs that are sold, and refuses what is beyond the bounds."""

    def __init__(self, bounds: Bounds) -> None:
        self.in_flight = 0
        """How many jobs are quoted or run."""
        self.result_bytes = 0
        """How many bytes of results are kept."""
        self._bounds = bounds
        self._jobs: Counter[tuple[str, SalePhase]] = Counter()
        self._bytes: Counter[str] = Counter()
        self._all_bytes = 0

    def add(self, sale: Sale) -> None:
        """Count a job."""
        self._count(sale.peer_id, sale.phase, 1)
        self._hold(sale.peer_id, sale.reserved_bytes)
        self.result_bytes += sale.result_bytes

    def moved(self, sale: Sale, before: SalePhase) -> None:
        """Count a job in its new phase."""
        self._count(sale.peer_id, before, -1)
        self._count(sale.peer_id, sale.phase, 1)
        if sale.phase in _OVER:
            # The request is not needed any more.
            self._hold(sale.peer_id, -sale.reserved_bytes)
            sale.reserved_bytes = 0

    def remove(self, sale: Sale) -> None:
        """Count a job no more."""
        self._count(sale.peer_id, sale.phase, -1)
        self._hold(sale.peer_id, -sale.reserved_bytes)
        self.result_bytes -= sale.result_bytes

    def count(self, phase: SalePhase) -> int:
        """Return how many jobs are in a phase."""
        return sum(jobs for (_, its_phase), jobs in self._jobs.items() if its_phase is phase)

    def check(self, peer_id: str) -> None:
        """Check whether a peer may have one more job.

        Raises:
            RequestRefused: it may not.
        """
        if self.count(SalePhase.RUNNING) >= self._bounds.running:
            raise RequestRefused(ErrorCode.RATE_LIMITED, "too many jobs run")
        if sum(self._jobs[peer_id, phase] for phase in _OPEN) >= self._bounds.jobs_per_peer:
            raise RequestRefused(ErrorCode.RATE_LIMITED, "too many jobs under way")
        if self._jobs[peer_id, SalePhase.QUOTED] >= self._bounds.quotes_per_peer:
            raise RequestRefused(ErrorCode.RATE_LIMITED, "too many unpaid quotes")

    def reserve(self, sale: Sale, size_bytes: int) -> None:
        """Hold room for a job's request, in place of what it held before.

        Raises:
            RequestRefused: there is no room.
        """
        more = size_bytes - sale.reserved_bytes
        of_peer = self._bytes[sale.peer_id] + more > self._bounds.input_bytes_per_peer
        if more > 0 and (of_peer or self._all_bytes + more > self._bounds.input_bytes):
            raise RequestRefused(ErrorCode.RATE_LIMITED, "too many bytes of requests")
        self._hold(sale.peer_id, more)
        sale.reserved_bytes = size_bytes

    def _count(self, peer_id: str, phase: SalePhase, jobs: int) -> None:
        self._jobs[peer_id, phase] += jobs
        if not self._jobs[peer_id, phase]:
            del self._jobs[peer_id, phase]
        if phase in _FLYING:
            self.in_flight += jobs

    def _hold(self, peer_id: str, size_bytes: int) -> None:
        self._bytes[peer_id] += size_bytes
        self._all_bytes += size_bytes
        if not self._bytes[peer_id]:
            del self._bytes[peer_id]
