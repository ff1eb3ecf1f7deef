"""The findings of the doctor, and those about the journal and the nodes."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lcp_gateway.cli.books.journal import journal_file, opened_journal
from lcp_gateway.cli.output import CommandFailed, printable
from lcp_gateway.config import NodeConfig, Settings, all_nodes, journal_place, without_password
from lcp_gateway.purchase.money import format_sat
from lcp_gateway.store.database.engines import DatabaseUnavailable
from lcp_gateway.store.database.schema import HEAD
from lcp_gateway.store.journal.queries import Books
from lcp_gateway.upstreams.openai.node_watch import NodeState


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report: a subject, whether it is in order, and advice where it is not."""

    name: str
    ok: bool
    text: str
    advice: str = ""


async def journal_finding(settings: Settings) -> Finding:
    """Open the journal and count the unknown purchases in it; one that does not exist yet is not made."""
    place = journal_place(settings)
    if place is None:
        return Finding("journal", True, "off: no purchase is recorded")
    path = journal_file(place)
    if path is not None and not path.exists():
        folder = next(parent for parent in path.absolute().parents if parent.exists())
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK):
            return Finding("journal", True, f"{path} is made at the first start")
        return Finding("journal", False, f"{path} cannot be made", f"{folder} cannot be written")
    try:
        async with opened_journal(settings) as database:
            open_now = await Books(database).outstanding()
            replaced = database.replaced
    except CommandFailed as error:
        return Finding("journal", False, str(error), "no gateway pays while it cannot write there")
    except DatabaseUnavailable as error:
        return Finding("journal", False, error.reason, "see journal_url")
    if replaced is not None:
        problem, _, remedy = replaced.partition(". ")
        return Finding("journal", False, problem, remedy)
    text = f"{without_password(str(place))}, version {HEAD}"
    if not open_now.unknown:
        return Finding("journal", True, text)
    text += f"; {open_now.unknown} unknown ({format_sat(open_now.unknown_msat)})"
    advice = "lnd resolves them if it is configured; else: purchases resolve"
    return Finding("journal", True, text, advice)


def node_findings(settings: Settings, states: Mapping[str, NodeState]) -> Iterator[Finding]:
    """Report of each node whether it is up, or why not."""
    for node in all_nodes(settings):
        state = states[node.name]
        if not state.up:
            text = f"{node.name}: {printable(state.problem)}"
            yield Finding("node", False, text, _advice(state.problem, node))
        elif not state.models:
            text = f"{node.name}: up, and offers no models"
            yield Finding("node", False, text, "load a model there, or name some in its models")
        else:
            yield Finding("node", True, f"{node.name}: up, {state.models} models")


def _advice(problem: str, node: NodeConfig) -> str:
    if "credentials" in problem:
        return "set its api_key to the one that it asks for"
    if "list of models" in problem:
        return "name its models in the configuration, or check its base_url"
    return f"is it running at {node.base_url}?"
