"""The workload and its result: the contract between the bench and its load generators."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Workload:
    """A number of clients that ask one after another for ``seconds``, after ``warm_up_s`` that is not counted."""

    model: str
    prompt: str
    stream: bool
    clients: int
    seconds: float
    warm_up_s: float

    @property
    def body(self) -> bytes:
        """The request's body, the same for all clients."""
        document = {"model": self.model, "messages": [{"role": "user", "content": self.prompt}], "stream": self.stream}
        return json.dumps(document).encode()

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Workload":
        return cls(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Load:
    """A load generator's result between its two lines; times in seconds.

    ``requests`` are those that ended; ``chunks`` all that came, counted as events. ``first`` is the time to the first
    byte or chunk of a result, ``total`` to its end.
    """

    requests: int
    errors: int
    chunks: int
    seconds: float
    first_p50: float
    first_p99: float
    total_p50: float
    total_p99: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Load":
        return cls(**json.loads(text))


class Tally:
    """Collects the results of one generator's clients; requests that end before ``begin`` are warm-up."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._total: list[float] = []
        self._errors = 0
        self._chunks = 0
        self._since = float("inf")

    def begin(self, now: float) -> None:
        self._since = now

    def done(self, started: float, first: float, ended: float) -> None:
        if ended >= self._since:
            self._first.append(first - started)
            self._total.append(ended - started)

    def came(self, data: bytes, now: float) -> None:
        """Count the events of a stream that ended in ``data``; HTTP's own framing has no empty line with LF only."""
        if now >= self._since:
            self._chunks += data.count(b"\n\n")

    def failed(self) -> None:
        self._errors += 1

    def load(self, now: float) -> Load:
        first, total = sorted(self._first), sorted(self._total)
        return Load(
            requests=len(total),
            errors=self._errors,
            chunks=self._chunks,
            seconds=now - self._since,
            first_p50=_quantile(first, 0.5),
            first_p99=_quantile(first, 0.99),
            total_p50=_quantile(total, 0.5),
            total_p99=_quantile(total, 0.99),
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else float("nan")
