"""``lcp-gateway spend``: the amounts spent, added up by time, model, peer and key."""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Annotated

import typer

from lcp_gateway.cli.books.journal import SinceOption, UntilOption, with_journal
from lcp_gateway.cli.options import JsonOption, command_app
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, print_json, print_table
from lcp_gateway.purchase.money import Msat, Period, format_sat
from lcp_gateway.purchase.records import PurchaseFilter, Spend
from lcp_gateway.store.database.engines import Database
from lcp_gateway.store.journal.queries import Books

app = command_app()


class GroupBy(enum.StrEnum):
    """The ways to add spending up."""

    HOUR = "hour"
    DAY = "day"
    MONTH = "month"
    MODEL = "model"
    PEER = "peer"
    KEY = "key"


_TIMES = {GroupBy.HOUR: Period.HOUR, GroupBy.DAY: Period.DAY, GroupBy.MONTH: Period.MONTH}
_TIME_FORMATS = {Period.HOUR: "%Y-%m-%dT%H:00Z", Period.DAY: "%Y-%m-%d", Period.MONTH: "%Y-%m"}
_NO_KEY = "-"


@dataclass(slots=True)
class SpendTotal:
    """The amounts spent under one heading; see ``Spend``."""

    purchases: int = 0
    settled_msat: int = 0
    unknown_msat: int = 0
    undelivered_msat: int = 0

    def add(self, spend: Spend) -> None:
        """Add one sum of the journal."""
        self.purchases += spend.purchases
        self.settled_msat += spend.settled_msat
        self.unknown_msat += spend.unknown_msat
        self.undelivered_msat += spend.undelivered_msat


@app.command()
@with_journal(reads_only=True)
async def spend(
    journal: Database,
    *,
    by: Annotated[
        list[GroupBy] | None, typer.Option("--by", help="Add up by this; may be repeated. By day if not given.")
    ] = None,
    period: Annotated[Period | None, typer.Option(help="Add up by this period (UTC) too.")] = None,
    since: SinceOption = None,
    until: UntilOption = None,
    json: JsonOption = False,
) -> None:
    """Print the amounts spent, routing fees included: the real ones where they are known, else the estimated ones."""
    time, others = _read_ways(by or [], period)
    which = PurchaseFilter(since=since, until=until)
    found = await Books(journal).spend(time or Period.MONTH, which)
    names = ([time.value] if time else []) + [way.value for way in others]
    sums = add_up(found, time, others)
    if json:
        print_json([{**dict(zip(names, heading, strict=True)), **asdict(total)} for heading, total in sums.items()])
        return
    whole = SpendTotal()
    for item in found:
        whole.add(item)
    rows = [(*heading, *_cells(total)) for heading, total in sums.items()]
    rows.append((*(["all"] + [""] * (len(names) - 1)), *_cells(whole)))
    amounts = ("purchases", "settled msat", "unknown msat", "undelivered msat", "settled")
    print_table((*names, *amounts), rows)


def add_up(found: Iterable[Spend], time: Period | None, others: Sequence[GroupBy]) -> dict[tuple[str, ...], SpendTotal]:
    """Add up by heading: the time first, if any, then the others in their order. Sorted by heading."""
    sums: dict[tuple[str, ...], SpendTotal] = {}
    for item in found:
        heading = [_of(item, way) for way in others]
        if time is not None:
            heading.insert(0, item.starts_at.strftime(_TIME_FORMATS[time]))
        sums.setdefault(tuple(heading), SpendTotal()).add(item)
    return dict(sorted(sums.items()))


def _read_ways(by: Sequence[GroupBy], period: Period | None) -> tuple[Period | None, Sequence[GroupBy]]:
    times = {_TIMES[way] for way in by if way in _TIMES} | ({period} if period else set())
    if len(times) > 1:
        raise CommandFailed("only one of hour, day and month can be added up by", exit_code=USAGE_ERROR)
    others = [way for way in dict.fromkeys(by) if way not in _TIMES]
    if not times and not others:
        return Period.DAY, others
    return next(iter(times), None), others


def _of(item: Spend, way: GroupBy) -> str:
    match way:
        case GroupBy.MODEL:
            return item.model
        case GroupBy.PEER:
            return item.peer_id
        case GroupBy.KEY:
            return item.key_id or _NO_KEY
        case _:
            raise AssertionError("a time is not a property of a purchase")


def _cells(total: SpendTotal) -> tuple[str, ...]:
    return (*map(str, astuple(total)), format_sat(Msat(total.settled_msat)))
