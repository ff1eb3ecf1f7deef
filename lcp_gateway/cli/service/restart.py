"""``lcp-gateway restart``: stops the gateway in the background, and starts it with the same flags or with others over them."""

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from lcp_gateway.cli.options import GroupedHelp, command_app, setting_flags
from lcp_gateway.cli.output import CommandFailed, report
from lcp_gateway.cli.service.instances import exclusive_access, find_instance, last_start, read_query
from lcp_gateway.cli.service.pid_file import Condition, InstanceRecord, read_pid_file
from lcp_gateway.cli.service.start import StartPlan, command_line_flags, plan_start, start_planned, typed_flags
from lcp_gateway.cli.service.stop import stop_instance

app = command_app()


@app.command(cls=GroupedHelp)
@setting_flags()
def restart(config: Path | None, flags: Mapping[str, object]) -> int:
    """Stop the gateway in the background and start it again, with its last flags and those given here over them."""
    query = read_query(flags, config)
    found = find_instance(query)
    record = found.record if found is not None else last_start(query)
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
            report(f"it was not running{_last_start_words(record)}")
        return start_planned(plan)


def _last_start_words(record: InstanceRecord | None) -> str:
    if record is None:
        return ""
    flags = " ".join(command_line_flags(record.flags, record.config))
    return f": it is started as on {record.since:%Y-%m-%d at %H:%M} UTC" + (
        f", with {flags}" if flags else ", without flags"
    )


def _plan(flags: Mapping[str, object], config: Path | None, record: InstanceRecord | None) -> StartPlan:
    """Check the new configuration first: a running gateway is not stopped for one that cannot be started."""
    if record is None:
        return plan_start(flags, config)
    # Paths in variables and in the file are relative to the folder that it was started in.
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
    """Check that this shell has the variables, such as keys, that the gateway was started with."""
    missing = [name for name in record.variables if not os.environ.get(name, "").strip()]
    if missing:
        raise CommandFailed(
            f"it was started with {', '.join(missing)} in the environment, which is missing here: "
            "set that, or use lcp-gateway stop, then start"
        )
