"""The loop brake: the same request again and again is a program gone wrong, and is held."""

import time
from collections import OrderedDict, deque
from collections.abc import Callable

from lcp_gateway.purchase.errors import Refused
from lcp_gateway.purchase.order import Order

_WINDOW_S = 60.0
_MAX_BODIES = 10_000


class LoopDetected(Refused):
    """The same body came too often from the same credential."""

    code = "loop_detected"

    def __init__(self, per_minute: int, wait_s: float) -> None:
        super().__init__(
            f"the same request came more than {per_minute} times in a minute; nothing was paid"
        )
        self.wait_s = wait_s


class LoopBrake:
    """Lets the same body pass ``per_minute`` times for a credential; 0 turns it off."""

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._seen: OrderedDict[tuple[str, bytes], deque[float]] = OrderedDict()

    def use(self, per_minute: int) -> None:
        """Let another number pass; what came lately still counts."""
        if per_minute == self._per_minute:
            return
        self._per_minute = per_minute
        for name, times in self._seen.items():
            self._seen[name] = deque(times, maxlen=per_minute)

    def check(self, order: Order) -> None:
        """Count an order.

        Raises:
            LoopDetected: there were too many like it.
        """
        if not self._per_minute:
            return
        now = self._clock()
        name = (order.key_id, order.body_sha256)
        times = self._seen.setdefault(name, deque(maxlen=self._per_minute))
        self._seen.move_to_end(name)
        while len(self._seen) > _MAX_BODIES:
            self._seen.popitem(last=False)
        if len(times) == self._per_minute and now - times[0] < _WINDOW_S:
            raise LoopDetected(self._per_minute, _WINDOW_S - (now - times[0]))
        times.append(now)
