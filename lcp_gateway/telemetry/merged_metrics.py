"""The metrics of several workers as those of one gateway.

A worker's families are plain data here, so that the supervisor, which keeps the last ones of each, needs no library for it.
A file for each worker, which the client library offers for this, has neither exemplars nor gauges that are computed at a scrape.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

Labels = tuple[tuple[str, str], ...]
Exemplar = tuple[Labels, float, float | None]
"""Labels, value, and seconds since 1970."""

_COUNTED: Final = frozenset({"counter", "histogram", "summary"})
_SUM, _LEAST, _MEAN = "sum", "least", "mean"

ACROSS: Final[Mapping[str, str]] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                "lcpgateway_answers_held_bytes",
                "lcpgateway_background_jobs_running",
                "lcpgateway_jobs_in_flight",
                # Exactly one worker leads: more in the sum are the fault that its alert is about.
                "lcpgateway_settlements_leader",
                "process_open_fds",
                "process_resident_memory_bytes",
                "process_virtual_memory_bytes",
            ),
            _SUM,
        ),
        **dict.fromkeys(
            (
                "lcpgateway_budget_left_msat",
                "lcpgateway_daemon_up",
                "lcpgateway_lnd_synced",
                "lcpgateway_lnd_up",
                "lcpgateway_node_up",
                "process_max_fds",
                "process_start_time_seconds",
            ),
            _LEAST,
        ),
        **dict.fromkeys(("lcpgateway_provider_first_byte_seconds", "lcpgateway_provider_tokens_per_second"), _MEAN),
    }
)
"""How the values of a gauge become one: those that are not here become the largest, which for ages and troubles is the worst,
and for what all workers read from one place the newest."""


@dataclass(slots=True)
class Family:
    """A family of one process: its samples by name and labels. ``exemplars`` are those that some of them have."""

    name: str
    kind: str
    help: str
    samples: dict[tuple[str, Labels], float] = field(default_factory=dict)
    exemplars: dict[tuple[str, Labels], Exemplar] = field(default_factory=dict)

    @property
    def is_counted(self) -> bool:
        """Whether its samples only grow."""
        return self.kind in _COUNTED


Snapshot = Mapping[str, Family]
"""The families of one worker at one moment, by name."""


class WorkerCounts:
    """The last snapshots of the workers that run, and the counts of those that ended: a sum of counters never falls.

    Only this object's numbers are ever shown. So a worker that dies loses what it counted since its last snapshot, and nothing
    that was shown before.
    """

    def __init__(self) -> None:
        self._last: dict[int, Snapshot] = {}
        self._gone: dict[str, Family] = {}

    def update(self, process: int, snapshot: Snapshot) -> None:
        """Keep the newest snapshot of a worker's process, by a number that no other process gets."""
        self._last[process] = snapshot

    def retire(self, process: int) -> None:
        """Keep the counts of a worker that ended, and drop its gauges."""
        for family in self._last.pop(process, {}).values():
            if family.is_counted:
                _add(self._gone, family)

    def merged(self) -> Snapshot:
        """Return the families of all."""
        merged: dict[str, Family] = {}
        gauges: dict[str, list[Family]] = {}
        for family in self._gone.values():
            _add(merged, family)
        for snapshot in self._last.values():
            for family in snapshot.values():
                if family.is_counted:
                    _add(merged, family)
                else:
                    gauges.setdefault(family.name, []).append(family)
        for name, families in gauges.items():
            merged[name] = _across(families, ACROSS.get(name, ""))
        return merged


def _add(into: dict[str, Family], family: Family) -> None:
    total = into.get(family.name)
    if total is None:
        total = into[family.name] = Family(family.name, family.kind, family.help)
    for key, value in family.samples.items():
        total.samples[key] = total.samples.get(key, 0.0) + value
    for key, exemplar in family.exemplars.items():
        held = total.exemplars.get(key)
        if held is None or (held[2] or 0.0) < (exemplar[2] or 0.0):
            total.exemplars[key] = exemplar


def _across(families: Iterable[Family], rule: str) -> Family:
    values: dict[tuple[str, Labels], list[float]] = {}
    for family in families:
        first = family
        for key, value in family.samples.items():
            values.setdefault(key, []).append(value)
    return Family(first.name, first.kind, first.help, {key: _combine(found, rule) for key, found in values.items()})


def _combine(values: list[float], rule: str) -> float:
    if rule == _SUM:
        return sum(values)
    if rule == _LEAST:
        return min(values)
    return sum(values) / len(values) if rule == _MEAN else max(values)
