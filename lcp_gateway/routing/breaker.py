"""The breaker: a peer that failed several times in a row is paused for a while, then tried carefully."""

from dataclasses import dataclass

MAX_PAUSE_S = 600.0
TRIAL_S = 30.0
"""How long a permission to try holds without a result of the trial."""


@dataclass(slots=True)
class Breaker:
    """Counts failures in a row. ``now`` is a reading of one monotonic clock, in seconds.

    Failures to quote are forgotten with the next quote, failures to deliver with the next delivery. Once both
    together reach ``failures`` the peer is paused for ``pause_s``; after that one trial at a time is let through.
    A trial that fails doubles the pause, up to ten minutes. ``failures`` of 0 turns the breaker off.
    """

    failures: int
    pause_s: float
    _failed_quotes: int = 0
    _failed_deliveries: int = 0
    _pause_s: float = 0.0
    _resting_until: float | None = None
    _trial_until: float | None = None
    _trial_job: bytes | None = None

    @property
    def has_failed(self) -> bool:
        """Whether failures count that a good quote forgets."""
        return bool(self._failed_quotes)

    def use(self, failures: int, pause_s: float) -> None:
        """Apply other rules; counts stay, and a pause that has begun keeps its length."""
        self.failures, self.pause_s = failures, pause_s
        if not failures:
            self._resting_until = None
            self._end_trial()

    def resting_s(self, now: float) -> float:
        """Return how long the peer is still paused; 0 when it is not."""
        return max(0.0, self._resting_until - now) if self._resting_until is not None else 0.0

    def is_on_trial(self, now: float) -> bool:
        """Return whether the pause is over, and nothing has shown yet that the peer works again."""
        return self._resting_until is not None and now >= self._resting_until

    def ask(self, now: float) -> bool:
        """Ask to try the peer. On trial, permission counts as the one trial until its result is known."""
        if self._resting_until is None:
            return True
        if now < self._resting_until or self._is_tried(now):
            return False
        self._trial_until, self._trial_job = now + TRIAL_S, None
        return True

    def would_pay(self, job_id: bytes, now: float) -> bool:
        """Return whether a job might be paid; changes nothing."""
        if self._resting_until is None:
            return True
        if now < self._resting_until:
            return False
        return self._trial_job in {None, job_id} or not self._is_tried(now)

    def hold(self, job_id: bytes, now: float) -> None:
        """Record that a job is about to be paid; on trial this makes it the one that is tried."""
        if self._resting_until is not None:
            self._trial_job, self._trial_until = job_id, now + TRIAL_S

    def paying(self, job_id: bytes) -> None:
        """Record that a job is being paid: a trial now holds until the job ends, however long it takes."""
        if self._trial_job == job_id:
            self._trial_until = None

    def ended(self, job_id: bytes) -> None:
        """Record that a job has ended."""
        if self._trial_job == job_id:
            self._end_trial()

    def quoted(self) -> None:
        """Record a good quote."""
        self._failed_quotes = 0
        self._close_if_well()

    def delivered(self) -> None:
        """Record a delivery."""
        self._failed_quotes = self._failed_deliveries = 0
        self._close_if_well()

    def failed_to_quote(self, now: float) -> None:
        """Record that no good quote came."""
        self._failed_quotes += 1
        self._open_if_bad(now)

    def failed_to_deliver(self, now: float, times: int = 1) -> None:
        """Record paid jobs that were not delivered."""
        self._failed_deliveries += times
        self._open_if_bad(now)

    def _is_bad(self) -> bool:
        return 0 < self.failures <= self._failed_quotes + self._failed_deliveries

    def _open_if_bad(self, now: float) -> None:
        if not self._is_bad() or self.resting_s(now):
            # Jobs that began before the pause and fail during it add no evidence.
            return
        self._pause_s = self._pause_s * 2 if self._resting_until is not None else self.pause_s
        # The longer of the two, for an operator who sets a first pause of more than ten minutes.
        self._pause_s = min(self._pause_s, max(MAX_PAUSE_S, self.pause_s))
        self._resting_until = now + self._pause_s
        self._end_trial()

    def _close_if_well(self) -> None:
        if self._resting_until is not None and not self._is_bad():
            self._resting_until = None
            self._end_trial()

    def _is_tried(self, now: float) -> bool:
        if self._trial_job is not None and self._trial_until is None:
            return True
        return self._trial_until is not None and now < self._trial_until

    def _end_trial(self) -> None:
        self._trial_until = self._trial_job = None
