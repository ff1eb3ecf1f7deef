"""``lcp-gateway restart``: stops the gateway in the background, and starts it with the same flags or with others over them."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

import typer

from lcp_gateway.cli.options import GroupedHelp, setting_flags
from lcp_gateway.cli.output import CommandFailed, report
from lcp_gateway.cli.service.instances import (
    exclusive_access,
    find_instance,
    last_start,
    read_query,
)
from lcp_gateway.cli.service.pid_file import Condition, InstanceRecord, read_pid_file
from lcp_gateway.cli.service.start import (
    StartPlan,
    command_line_flags,
    plan_start,
    start_planned,
    typed_flags,
)
from lcp_gateway.cli.service.stop import stop_instance

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command(cls=GroupedHelp)
@setting_flags()
def restart(config: Path | None, flags: Mapping[str, object]) -> int:
    """Stop and start it, with the flags it was started with last and those given here over them."""
    question = read_query(flags, config)
    found = find_instance(question)
    record = found.record if found is not None else last_start(question)
    if found is not None and found.condition is Condition.FOREIGN:
        raise CommandFailed(f"{found.path}: {found.problem}: that gateway is not yours to restart")
    plan = _plan(flags, config, record)
    if record is not None:
        _check_variables(record)
    paths = {plan.files.pid_file} | ({found.path} if found is not None else set())
    with contextlib.ExitStack() as stack:
        for path in sorted(paths):
            stack.enter_context(exclusive_access(path, plan.settings))
        now = read_pid_file(found.path) if found is not None else None
        if now is not None and now.running is not None:
            stop_instance(now, plan.settings)
        else:
            report(f"it was not running{_as_before(record)}")
        return start_planned(plan)


def _as_before(record: InstanceRecord | None) -> str:
    if record is None:
        return ""
    flags = " ".join(command_line_flags(record.flags, record.config))
    return f": it is started as on {record.since:%Y-%m-%d at %H:%M} UTC" + (
        f", with {flags}" if flags else ", without flags"
    )


def _plan(
    flags: Mapping[str, object], config: Path | None, record: InstanceRecord | None
) -> StartPlan:
    """Check the new configuration: a gateway that runs is not stopped for one that cannot be started."""
    if record is None:
        return plan_start(flags, config)
    # Whatever the variables and the file name, they name it as it is seen from where it was started.
    config = config.expanduser().absolute() if config is not None else record.config
    merged = record.flags | typed_flags(flags)
    try:
        with contextlib.chdir(record.folder):
            return plan_start(merged, config)
    except FileNotFoundError:
        raise CommandFailed(
            f"{record.folder}, which it was started in, is gone: use lcp-gateway stop, then start"
        ) from None


def _check_variables(record: InstanceRecord) -> None:
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
