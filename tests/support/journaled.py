"""Helpers of the money tests: a node of their own with its events, and reading the journal on disk."""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.daemon import Daemon, daemon
from tests.support.wire import CHAT, document, post

PAID_STATES = {"settled", "delivered", "undelivered", "unknown"}


@dataclass(frozen=True)
class TestedNode:
    """A node that outlives the gateways on it."""

    __test__ = False

    daemon: Daemon
    events_file: Path

    def events(self, kind: str | None = None) -> list[dict]:
        if not self.events_file.exists():
            return []
        # The last line may be half written while the node runs.
        lines = self.events_file.read_bytes().split(b"\n")[:-1]
        found = [json.loads(line) for line in lines]
        return [event for event in found if kind is None or event["kind"] == kind]

    def mark(self) -> "Since":
        """Return the present position in the node's events."""
        return Since(self, len(self.events()))


@dataclass(frozen=True)
class Since:
    """A node's events since ``mark``."""

    node: TestedNode
    begins_at: int

    def jobs(self, kind: str) -> list[str]:
        events = self.node.events()[self.begins_at :]
        return [event["job_id"] for event in events if event["kind"] == kind]

    def count(self, kind: str) -> int:
        return len(self.jobs(kind))


@contextmanager
def money_node(
    folder: Path, *, toml: str = "", faults: bool = False, module: str = "lcp_gateway", **variables: str
) -> Iterator[TestedNode]:
    """Run a node as ``toml`` describes it; ``variables`` are added to its environment."""
    events_file = folder / "events.jsonl"
    flags = ["--events", str(events_file)]
    if toml:
        peers = folder / "node.toml"
        peers.write_text(toml)
        flags += ["--peers", str(peers)]
    if faults:
        flags.append("--faults")
    with daemon(*flags, module=module, **variables) as running:
        yield TestedNode(running, events_file)


def on_node(node: TestedNode, **more: object) -> dict[str, str]:
    """The settings of a gateway on a node; ``more`` are settings by their lower-case names."""
    settings = {"LCP_GATEWAY_LCPD_GRPC_ADDR": node.daemon.address}
    return settings | {f"LCP_GATEWAY_{name.upper()}": str(value) for name, value in more.items()}


def quoted(port: int, body: dict, path: str = CHAT, headers: dict[str, str] | None = None) -> dict:
    """Return the price of a request."""
    answer = post(port, path, body, {"X-Lcp-Quote-Only": "true", **(headers or {})})
    assert answer.status == 200, answer.body
    return answer.json


def cost_msat(port: int, body: dict) -> int:
    """The amount that a budget counts for a request."""
    quote = quoted(port, body)
    return quote["price_msat"] + quote["max_fee_msat"]


def chat(model: str = "echo-1", **more: object) -> dict:
    """A cheap request with a constant price."""
    return document(CHAT, model, max_tokens=8, **more)


def query(journal: Path, statement: str, values: Sequence[object] = ()) -> list[tuple]:
    with closing(sqlite3.connect(f"file:{journal}?mode=ro", uri=True, timeout=60)) as connection:
        return connection.execute(statement, values).fetchall()


def states(journal: Path) -> dict[str, str]:
    """The state of every purchase in a SQLite journal, by its job's id in hex."""
    return dict(query(journal, "SELECT lower(hex(job_id)), state FROM purchases"))


def state_counts(journal: Path) -> Counter:
    return Counter(states(journal).values())


def counted_msat(journal: Path, scope: str = "", period: str = "month") -> int:
    """The budget counters of a scope."""
    found = query(
        journal, "SELECT coalesce(sum(spent_msat), 0) FROM budget_spend WHERE scope = ? AND period = ?", (scope, period)
    )
    return found[0][0]


def spent_msat(journal: Path) -> int:
    """The sum of all purchases that were paid or may have been."""
    found = query(
        journal,
        "SELECT coalesce(sum(price_msat + coalesce(fee_msat, fee_cap_msat)), 0) "
        "FROM purchases WHERE state != 'not_paid'",
    )
    return found[0][0]
