"""``lcp-gateway restart``: stops the gateway in the background, and starts it with the same flags or with others over them."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import typer

from lcp_gateway.cli.flags import setting_flags
from lcp_gateway.cli.grouped_help import GroupedHelp
from lcp_gateway.cli.instances import ask, holding, last_start, meant
from lcp_gateway.cli.outcome import CommandFailed, complain
from lcp_gateway.cli.pid_file import Condition, Record, read_pid_file
from lcp_gateway.cli.start import Plan, carry_out, make_plan, typed_flags
from lcp_gateway.cli.starting import arguments
from lcp_gateway.cli.stop import stop_found

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=GroupedHelp)
@setting_flags()
def restart(config: Path | None, flags: Mapping[str, object]) -> int:
    """Stop and start it, with the flags it was started with last and those given here over them."""
    question = ask(flags, config)
    found = meant(question)
    record = found.record if found is not None else last_start(question)
    if found is not None and found.condition is Condition.FOREIGN:
        raise CommandFailed(f"{found.path}: {found.problem}: that gateway is not yours to restart")
    plan = _plan(flags, config, record)
    if record is not None:
        _check_variables(record)
    paths = {plan.files.pid_file} | ({found.path} if found is not None else set())
    with contextlib.ExitStack() as stack:
        for path in sorted(paths):
            stack.enter_context(holding(path, plan.settings))
        now = read_pid_file(found.path) if found is not None else None
        if now is not None and now.running is not None:
            stop_found(now, plan.settings)
        else:
            complain(f"it was not running{_as_before(record)}")
        return carry_out(plan)


def _as_before(record: Record | None) -> str:
    if record is None:
        return ""
    flags = " ".join(arguments(record.flags, record.config))
    return f": it is started as on {record.since:%Y-%m-%d at %H:%M} UTC" + (
        f", with {flags}" if flags else ", without flags"
    )


def _plan(flags: Mapping[str, object], config: Path | None, record: Record | None) -> Plan:
    """Check the new configuration: a gateway that runs is not stopped for one that cannot be started."""
    if record is None:
        return make_plan(flags, config)
    # Whatever the variables and the file name, they name it as it is seen from where it was started.
    config = config.expanduser().absolute() if config is not None else record.config
    merged = record.flags | typed_flags(flags)
    try:
        with contextlib.chdir(record.folder):
            return make_plan(merged, config)
    except FileNotFoundError:
        raise CommandFailed(
            f"{record.folder}, which it was started in, is gone: use lcp-gateway stop, then start"
        ) from None


def _check_variables(record: Record) -> None:
    """Keep a gateway from coming back without its keys, because this shell does not have them.

    Raises:
        CommandFailed: variables that it was started with are missing.
    """
    missing = [name for name in record.variables if not os.environ.get(name, "").strip()]
    if missing:
        raise CommandFailed(
            f"it was started with {', '.join(missing)} in the environment, which is missing here: "
            "set that, or use lcp-gateway stop, then start"
        )
