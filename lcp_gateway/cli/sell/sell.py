"""``lcp-gateway sell``: what a node over lnd sells and has sold, read from its store beside the running node."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Final

import typer

from lcp_gateway.cli.books.journal import SinceOption
from lcp_gateway.cli.node.options import load_node_settings, store_path
from lcp_gateway.cli.options import JsonOption, command_group
from lcp_gateway.cli.output import Columns, CommandFailed, format_time, print_json, print_list, print_pairs, print_table
from lcp_gateway.cli.sell.earnings import SALE, Earnings, GroupBy, add_up, outcomes, whole
from lcp_gateway.node.storage.files import StoreUnavailable
from lcp_gateway.node.storage.history import HistoryLine, HistoryReader, OpenJob, open_history
from lcp_gateway.purchase.money import Msat, format_sat

app = command_group("Show what a node over lnd sells and has earned.")

_USUAL_AGE: Final = timedelta(days=30)
_USUAL_LIMIT: Final = 20
_AMOUNTS: Final = ("jobs", "delivered", "undelivered", "earned msat", "undelivered msat", "earned")

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
        open_jobs = [job for job in history.open_jobs() if job.kind == SALE]
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
        lines = history.lines(SALE, since=began_at, limit=limit)
    print_list(lines, _COLUMNS, _line_document, json=json)


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
    return (*amounts.cells, format_sat(Msat(amounts.earned_msat)))


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
