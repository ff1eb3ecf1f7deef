"""The workload and its result: the contract between the bench and its load generators."""

import asyncio
import json
from dataclasses import asdict, dataclass
from typing import Final

_WAIT_S: Final = 0.05
_WAITS: Final = 1_200


@dataclass(frozen=True, slots=True)
class Workload:
    """A number of clients that ask one after another for ``seconds``, after ``warm_up_s`` that is not counted.

    ``every_s`` lets a client begin a request so often at most, and 0 at once. The stand-in sends streams of ``chunks`` with
    ``pause_s`` between them; None leaves both to it.
    """

    model: str
    prompt: str
    stream: bool
    clients: int
    seconds: float
    warm_up_s: float
    every_s: float = 0.0
    chunks: int | None = None
    pause_s: float = 0.0

    @property
    def body(self) -> bytes:
        """The request's body, the same for all clients."""
        return self._body(self.chunks)

    def first_body(self, client: int) -> bytes:
        """The body of a client's first request: shorter streams, so that later ones do not begin and end together."""
        chunks = self.chunks
        return self._body(None if chunks is None else max(1, chunks * (client + 1) // self.clients))

    def _body(self, chunks: int | None) -> bytes:
        document = {"model": self.model, "messages": [{"role": "user", "content": self.prompt}], "stream": self.stream}
        if chunks is not None:
            document |= {"max_tokens": chunks, "seed": round(self.pause_s * 1000)}
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
    byte or chunk of a result, ``total`` to its end, ``gap`` between two reads of one stream.
    """

    requests: int
    errors: int
    chunks: int
    seconds: float
    first_p50: float
    first_p99: float
    total_p50: float
    total_p99: float
    gap_p50: float
    gap_p99: float

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Load":
        return cls(**json.loads(text))


class Tally:
    """Collects the results of one generator's clients; what came before ``begin`` is warm-up."""

    def __init__(self) -> None:
        self._first: list[float] = []
        self._total: list[float] = []
        self._gaps: list[float] = []
        self._errors = 0
        self._chunks = 0
        self._since = float("inf")

    def begin(self, now: float) -> None:
        self._since = now

    def began(self, started: float, first: float) -> None:
        if first >= self._since:
            self._first.append(first - started)

    def done(self, started: float, ended: float) -> None:
        if ended >= self._since:
            self._total.append(ended - started)

    def came(self, data: bytes, before: float, now: float) -> None:
        """Count the events of a stream that ended in ``data``; HTTP's own framing has no empty line with LF only.

        ``before`` is when the stream's last bytes came, 0 for its first.
        """
        if now >= self._since:
            self._chunks += data.count(b"\n\n")
            if before:
                self._gaps.append(now - before)

    def failed(self) -> None:
        self._errors += 1

    async def until_counted(self, *, stream: bool) -> None:
        """Wait until something was counted: on a machine that does other work, nothing may come within the time that is measured."""
        for _ in range(_WAITS):
            if self._errors or (self._chunks if stream else self._total):
                return
            await asyncio.sleep(_WAIT_S)

    def load(self, now: float) -> Load:
        first, total, gaps = sorted(self._first), sorted(self._total), sorted(self._gaps)
        return Load(
            requests=len(total),
            errors=self._errors,
            chunks=self._chunks,
            seconds=now - self._since,
            first_p50=_quantile(first, 0.5),
            first_p99=_quantile(first, 0.99),
            total_p50=_quantile(total, 0.5),
            total_p99=_quantile(total, 0.99),
            gap_p50=_quantile(gaps, 0.5),
            gap_p99=_quantile(gaps, 0.99),
        )


def _quantile(ordered: list[float], q: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * q))] if ordered else float("nan")
