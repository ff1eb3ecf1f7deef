"""``lcp-gateway sell``: what a node over lnd sells and has sold, read from its store beside the running node."""

import contextlib
import enum
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from lcp_gateway.cli.books.journal import SinceOption
from lcp_gateway.cli.node.options import load_node_settings, store_path
from lcp_gateway.cli.options import JsonOption, command_group
from lcp_gateway.cli.output import Columns, CommandFailed, format_time, print_json, print_list, print_pairs, print_table
from lcp_gateway.node.runtime.observer import JobEnd
from lcp_gateway.node.storage.files import StoreUnavailable
from lcp_gateway.node.storage.history import HistoryLine, HistoryReader, HistoryTotal, OpenJob, open_history
from lcp_gateway.purchase.money import Msat, format_sat

app = command_group("Show what a node over lnd sells and has earned.")

# The word of the store for a job that was sold.
_SALE: Final = "sale"
_USUAL_AGE: Final = timedelta(days=30)
_USUAL_LIMIT: Final = 20
_AMOUNTS: Final = ("jobs", "delivered", "undelivered", "earned msat", "undelivered msat", "earned")


class GroupBy(enum.StrEnum):
    """The ways to add earnings up."""

    DAY = "day"
    MODEL = "model"
    PEER = "peer"


@dataclass(slots=True)
class Earnings:
    """Paid jobs under one heading. ``undelivered`` are those whose buyer got no whole result."""

    jobs: int = 0
    delivered: int = 0
    undelivered: int = 0
    earned_msat: int = 0
    undelivered_msat: int = 0

    def add(self, total: HistoryTotal) -> None:
        """Add one sum of the store, of jobs that were paid."""
        self.jobs += total.jobs
        self.earned_msat += total.price_msat
        if total.outcome == JobEnd.DELIVERED:
            self.delivered += total.jobs
        else:
            self.undelivered += total.jobs
            self.undelivered_msat += total.price_msat


_COLUMNS: Columns[HistoryLine] = {
    "ended": lambda line: _time(line.ended_at),
    "job": lambda line: line.job_id.hex(),
    "peer": lambda line: line.peer_id,
    "model": lambda line: line.model,
    "price": lambda line: format_sat(Msat(line.price_msat)),
    "outcome": lambda line: line.outcome,
}

ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The node's TOML file, if it has one.")
]
ByOption = Annotated[
    list[GroupBy] | None, typer.Option("--by", help="Add up by this; may be repeated. By day if not given.")
]


@app.command()
def status(
    *, by: ByOption = None, since: SinceOption = None, config: ConfigOption = None, json: JsonOption = False
) -> None:
    """Show the jobs that are open, how others ended, and what they earned, in the last 30 days if not said otherwise."""
    began_at = since or datetime.now(UTC) - _USUAL_AGE
    ways = list(dict.fromkeys(by or [GroupBy.DAY]))
    with _opened(config) as history:
        open_jobs = [job for job in history.open_jobs() if job.kind == _SALE]
        totals = history.totals(int(began_at.timestamp()))
    sums, ended = add_up(totals, ways), outcomes(totals)
    if json:
        print_json(
            {
                "open": [_open_document(job) for job in open_jobs],
                "since": format_time(began_at),
                "ended": ended,
                **asdict(whole(totals)),
                "earnings": [
                    {**dict(zip(ways, heading, strict=True)), **asdict(amounts)} for heading, amounts in sums.items()
                ],
            }
        )
        return
    print_pairs(
        [
            ("open", _open_text(open_jobs)),
            ("since", format_time(began_at)),
            ("ended", ", ".join(f"{count} {outcome}" for outcome, count in ended.items()) or "none"),
            ("earned", _earned_text(whole(totals))),
        ]
    )
    if sums:
        print_table((*ways, *_AMOUNTS), ((*heading, *_cells(amounts)) for heading, amounts in sums.items()))


@app.command()
def jobs(
    *,
    limit: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="At most so many.")] = _USUAL_LIMIT,
    since: SinceOption = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """List jobs that were run and have ended, the newest first."""
    began_at = 0 if since is None else int(since.timestamp())
    with _opened(config) as history:
        lines = history.lines(_SALE, since=began_at, limit=limit)
    print_list(lines, _COLUMNS, _line_document, json=json)


def add_up(totals: Iterable[HistoryTotal], ways: Sequence[GroupBy]) -> dict[tuple[str, ...], Earnings]:
    """Add up what was paid by heading, in the order of ``ways``; sorted by heading."""
    sums: dict[tuple[str, ...], Earnings] = {}
    for total in _paid(totals):
        heading = tuple(_of(total, way) for way in ways)
        sums.setdefault(heading, Earnings()).add(total)
    return dict(sorted(sums.items()))


def outcomes(totals: Iterable[HistoryTotal]) -> dict[str, int]:
    """Return how many jobs ended in which way, paid or not."""
    counted: dict[str, int] = {}
    for total in totals:
        if total.kind == _SALE:
            counted[total.outcome] = counted.get(total.outcome, 0) + total.jobs
    return dict(sorted(counted.items()))


def whole(totals: Iterable[HistoryTotal]) -> Earnings:
    """Add up all that was paid."""
    all_of_it = Earnings()
    for total in _paid(totals):
        all_of_it.add(total)
    return all_of_it


def _paid(totals: Iterable[HistoryTotal]) -> Iterable[HistoryTotal]:
    return (total for total in totals if total.kind == _SALE and total.paid)


def _of(total: HistoryTotal, way: GroupBy) -> str:
    match way:
        case GroupBy.DAY:
            return total.day
        case GroupBy.MODEL:
            return total.model
        case GroupBy.PEER:
            return total.peer_id


@contextlib.contextmanager
def _opened(config: Path | None) -> Iterator[HistoryReader]:
    try:
        with open_history(store_path(load_node_settings(config))) as history:
            yield history
    except StoreUnavailable as error:
        raise CommandFailed(str(error)) from None


def _open_text(jobs: Sequence[OpenJob]) -> str:
    if not jobs:
        return "none"
    sending = sum(job.sending for job in jobs)
    price = format_sat(Msat(sum(job.price_msat for job in jobs)))
    return f"{len(jobs)} for {price}: {len(jobs) - sending} quoted or running, {sending} being answered"


def _earned_text(all_of_it: Earnings) -> str:
    earned = format_sat(Msat(all_of_it.earned_msat))
    if not all_of_it.undelivered:
        return f"{earned} for {all_of_it.jobs} jobs"
    without = format_sat(Msat(all_of_it.undelivered_msat))
    return f"{earned} for {all_of_it.jobs} jobs, of them {without} for {all_of_it.undelivered} without a whole result"


def _cells(amounts: Earnings) -> tuple[str, ...]:
    return (*map(str, astuple(amounts)), format_sat(Msat(amounts.earned_msat)))


def _open_document(job: OpenJob) -> dict[str, object]:
    return {
        "job_id": job.job_id.hex(),
        "peer_id": job.peer_id,
        "model": job.model,
        "price_msat": job.price_msat,
        "began_at": _time(job.began_at),
        "quote_expiry": _time(job.quote_expiry),
        "sending": job.sending,
    }


def _line_document(line: HistoryLine) -> dict[str, object]:
    return {
        "job_id": line.job_id.hex(),
        "peer_id": line.peer_id,
        "model": line.model,
        "price_msat": line.price_msat,
        "payment_hash": line.payment_hash.hex(),
        "outcome": line.outcome,
        "began_at": _time(line.began_at),
        "ended_at": _time(line.ended_at),
    }


def _time(at: int) -> str:
    return format_time(datetime.fromtimestamp(at, UTC))
