"""``lcp-gateway start``: the gateway in the background, ready when the command returns."""

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from lcp_gateway.cli.embedded import NO_REAL_MONEY
from lcp_gateway.cli.flags import load_or_complain, setting_flags
from lcp_gateway.cli.grouped_help import GroupedHelp
from lcp_gateway.cli.instances import Files, files_of, holding, remove_left_over
from lcp_gateway.cli.outcome import USAGE_ERROR, CommandFailed, complain
from lcp_gateway.cli.output import plain, print_pairs
from lcp_gateway.cli.pid_file import PidFile, read_pid_file
from lcp_gateway.cli.readiness import ask_readiness, url_of
from lcp_gateway.cli.serve import check_node
from lcp_gateway.cli.starting import Launch, NotStarted, start_process
from lcp_gateway.config import (
    Loaded,
    Settings,
    SourceKind,
    Spec,
    parse_host_port,
    specs,
    spending_cautions,
)
from lcp_gateway.config.parsers import JOURNAL_OFF
from lcp_gateway.config.sources import CONFIG_VARIABLE

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_PATH_FORMS = ("file", "folder")
_SHOWN_LINES = 15
_SHOWN_CHARACTERS = 400
_TAKEN = "cannot listen on"


@dataclass(frozen=True, slots=True)
class Plan:
    """A gateway that can be started: its configuration was read and found good."""

    loaded: Loaded
    launch: Launch

    @property
    def settings(self) -> Settings:
        """What it is started with."""
        return self.loaded.settings

    @property
    def files(self) -> Files:
        """Where its files are."""
        return self.launch.files


@app.command(cls=GroupedHelp)
@setting_flags()
def start(config: Path | None, flags: Mapping[str, object]) -> int:
    """Start the gateway in the background. Waits until it is ready. Takes the flags of `serve`."""
    plan = make_plan(flags, config)
    with holding(plan.files.pid_file, plan.settings):
        return carry_out(plan)


def make_plan(flags: Mapping[str, object], config: Path | None) -> Plan:
    """Read the configuration as ``serve`` will, from the folder that we are in. Nothing is started yet.

    Raises:
        CommandFailed: it cannot be used, or not in the background.
    """
    loaded = load_or_complain(flags, config)
    settings = loaded.settings
    if not parse_host_port(settings.http_addr).port:
        raise CommandFailed(
            f"{loaded.source_of('http_addr')}: a gateway in the background needs a port of its own, not 0",
            exit_code=USAGE_ERROR,
        )
    check_node(settings)
    launch = Launch(
        address=settings.http_addr,
        url=url_of(settings),
        flags=typed_flags(flags),
        config=config.expanduser().absolute() if config is not None else None,
        folder=Path.cwd(),
        files=files_of(settings),
        variables=_variables(loaded),
        timeout_s=settings.start_timeout_s,
    )
    return Plan(loaded, launch)


def typed_flags(flags: Mapping[str, object]) -> dict[str, str | bool]:
    """Give the flags that were given, with paths as they are seen from anywhere."""
    known = specs()
    given: dict[str, str | bool] = {}
    for name, value in flags.items():
        if isinstance(value, str) and _is_path(known[name], value.strip()):
            given[name] = str(Path(value.strip()).expanduser().absolute())
        elif isinstance(value, str | bool):
            given[name] = value
    return given


def carry_out(plan: Plan) -> int:
    """Start what is planned, and print where it is; to be called while it is held.

    Raises:
        CommandFailed: it runs elsewhere, or cannot be started.
    """
    found = read_pid_file(plan.files.pid_file)
    if found is not None and found.running is not None:
        return _runs_already(plan, found)
    if ask_readiness(plan.launch.url) is not None:
        raise CommandFailed(
            f"a gateway that was not started with these settings answers at {plan.launch.url}: "
            "end it first, or choose another --http-addr"
        )
    if found is not None:
        remove_left_over(found)
    try:
        process, readiness = start_process(plan.launch)
    except NotStarted as error:
        raise _explained(error, plan) from None
    except OSError as error:
        raise CommandFailed(
            f"{error.filename or plan.files.pid_file.parent}: cannot be used: {error.strerror}"
        ) from None
    # Where it failed, they are among the lines of the log that were shown.
    warnings = [*plan.loaded.warnings, *spending_cautions(plan.settings)]
    complain(*(f"warning: {warning}" for warning in warnings))
    if plan.settings.embedded:
        typer.echo(NO_REAL_MONEY)
    typer.echo(f"Started lcp-gateway at {plan.launch.url} ({readiness.peers} peers)")
    print_pairs(
        (
            ("PID", str(process.pid)),
            ("PID file", str(plan.files.pid_file)),
            ("Log file", str(plan.files.log_file)),
        )
    )
    return 0


def _runs_already(plan: Plan, found: PidFile) -> int:
    if (record := found.running) is None or record.address != plan.launch.address:
        other = record.url if record is not None else "another address"
        raise CommandFailed(
            f"{found.path} is that of a gateway at {other}: choose another --pid-file, or end that one"
        )
    typer.echo(f"lcp-gateway runs already at {record.url} (PID {record.process.pid})")
    if (plan.launch.flags, plan.launch.config) != (record.flags, record.config):
        complain("it was started with other flags: lcp-gateway restart takes these")
    return 0


def _explained(error: NotStarted, plan: Plan) -> CommandFailed:
    """Show the end of the log, and give what to say."""
    text = error.log.decode("utf-8", "replace")
    lines = [plain(line)[:_SHOWN_CHARACTERS] for line in text.splitlines() if line.strip()]
    if lines:
        sys.stderr.write("".join(f"  {line}\n" for line in lines[-_SHOWN_LINES:]))
    said = [str(error)]
    if _TAKEN in text:
        said.append(
            f"something else listens at {plan.settings.http_addr}: end it, or choose another --http-addr"
        )
    said.append(f"the log is {plan.files.log_file}")
    return CommandFailed(*said, exit_code=error.exit_code)


def _is_path(spec: Spec, value: str) -> bool:
    if spec.name == "journal_url":
        return value not in {"", JOURNAL_OFF} and "://" not in value
    return bool(value) and spec.form.name in _PATH_FORMS


def _variables(loaded: Loaded) -> tuple[str, ...]:
    """Name the variables that the settings come from."""
    kinds = {SourceKind.ENVIRONMENT, SourceKind.OPENAI_SERVE, SourceKind.OPENCLAW}
    sources = map(loaded.source_of, type(loaded.settings).model_fields)
    found = {source.where for source in sources if source.kind in kinds}
    if os.environ.get(CONFIG_VARIABLE):
        found.add(CONFIG_VARIABLE)
    return tuple(sorted(found))
