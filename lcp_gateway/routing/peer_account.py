"""The account of one peer: what it has delivered and lost, and what is out with it."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from lcp_gateway.routing.breaker import Breaker


@dataclass(slots=True)
class PeerAccount:
    """What a peer has delivered and lost, and the prices that are out with it, by job; times are of one monotonic clock."""

    breaker: Breaker
    limited: bool = True
    delivered_msat: int = 0
    delivered_count: int = 0
    lost_msat: int = 0
    lost_at: float = 0.0
    out_msat: int = 0
    _jobs: dict[bytes, int] = field(default_factory=dict)
    _lapse_at: dict[bytes, float] = field(default_factory=dict)

    def put(self, job_id: bytes, price_msat: int, lapse_at: float | None = None) -> None:
        """Hold a price for a job, until ``lapse_at`` where that is given."""
        self.out_msat += price_msat - self._jobs.get(job_id, 0)
        self._jobs[job_id] = price_msat
        self._lapse_at.pop(job_id, None)
        if lapse_at is not None:
            self._lapse_at[job_id] = lapse_at

    def take(self, job_id: bytes) -> None:
        """Release what is held for a job."""
        self.out_msat -= self._jobs.pop(job_id, 0)
        self._lapse_at.pop(job_id, None)

    def jobs(self) -> Iterable[tuple[bytes, int]]:
        """Return each job with the price that is out for it."""
        return self._jobs.items()

    def out_without(self, job_id: bytes) -> int:
        """Return what is out without one job."""
        return self.out_msat - self._jobs.get(job_id, 0)

    def drop_lapsed(self, now: float) -> None:
        """Release what has lapsed."""
        # They lapse in the order in which they were made, which is the dict's.
        while self._lapse_at:
            job_id, lapse_at = next(iter(self._lapse_at.items()))
            if now < lapse_at:
                return
            self.take(job_id)
