"""``lcp-gateway stop``: ends a gateway in the background; it is asked first, and killed only when it does not end."""

import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import typer

from lcp_gateway.cli.gateway_client import Address, ask_readiness
from lcp_gateway.cli.options import command_app, setting_flags
from lcp_gateway.cli.output import CommandFailed, report
from lcp_gateway.cli.service.instances import (
    INSTANCE_SETTINGS,
    InstanceQuery,
    exclusive_access,
    find_instance,
    read_query,
    remove_left_over,
    run_folder,
    running_elsewhere,
)
from lcp_gateway.cli.service.pid_file import Condition, PidFile, read_pid_file, remove_pid_file
from lcp_gateway.cli.service.processes import Process, children_of, send, wait_gone
from lcp_gateway.config import Settings

app = command_app()

_REPORT_AFTER_S = 1.0
_KILLED_WITHIN_S = 5.0
# An embedded node ends by itself once its gateway is gone.
_NODE_ENDS_WITHIN_S = 5.0


@app.command()
@setting_flags(groups=(), also=(*INSTANCE_SETTINGS, "stop_timeout_s"))
def stop(config: Path | None, flags: Mapping[str, object]) -> int:
    """Stop the gateway in the background. Running jobs may end first; a gateway that does not end is killed."""
    query = read_query(flags, config)
    found = find_instance(query)
    if found is None:
        return _nothing_to_stop(query)
    report(*query.problems)
    with exclusive_access(found.path, query.settings):
        # Another command may have stopped it meanwhile.
        now = read_pid_file(found.path)
        if now is None:
            return _print_stopped()
        return stop_instance(now, query.settings)


def stop_instance(found: PidFile, settings: Settings) -> int:
    """Stop the gateway of a PID file, and remove the file; to be called with exclusive access to it."""
    if found.condition is Condition.FOREIGN:
        raise CommandFailed(f"{found.path}: {found.problem}: that gateway is not yours to stop")
    if (record := found.running) is None:
        remove_left_over(found)
        return _print_stopped()
    process, timeout_s = record.process, settings.stop_timeout_s
    waiting = f"waiting for running jobs of PID {process.pid}, up to {timeout_s:g} s"
    try:
        killed = end_process(process, timeout_s, lambda: report(waiting))
    except ProcessSurvived:
        raise CommandFailed(
            f"PID {process.pid} still runs after it was killed: it hangs in a system call, perhaps on a disk"
        ) from None
    except OSError as error:
        raise CommandFailed(f"PID {process.pid} cannot be ended: {error.strerror}") from None
    # The gateway removes it itself, unless it was killed.
    remove_pid_file(found.path, process)
    if killed:
        report(
            f"it did not end within {timeout_s:g} s (stop_timeout_s) and was killed: "
            "see lcp-gateway purchases list --state unknown for payments that it may have begun"
        )
    typer.echo(f"Stopped lcp-gateway at {record.url} (PID {process.pid})")
    return 0


class ProcessSurvived(Exception):
    """A process still runs after it was killed."""


def end_process(process: Process, timeout_s: float, waiting: Callable[[], None]) -> bool:
    """End a gateway and the node that it runs; returns whether it had to be killed after ``timeout_s``.

    ``waiting`` is called once when it takes a while.

    Raises:
        ProcessSurvived: it still runs after SIGKILL.
        OSError: the system does not allow it.
    """
    nodes = {*children_of(process)}
    send(process, signal.SIGTERM)
    left = wait_gone([process], min(timeout_s, _REPORT_AFTER_S))
    if left and timeout_s > _REPORT_AFTER_S:
        waiting()
        left = wait_gone([process], timeout_s - _REPORT_AFTER_S)
    if left:
        nodes.update(children_of(process))
        send(process, signal.SIGKILL)
        if wait_gone([process], _KILLED_WITHIN_S):
            raise ProcessSurvived
    for node in wait_gone(list(nodes), _NODE_ENDS_WITHIN_S):
        send(node, signal.SIGKILL)
    return bool(left)


def _nothing_to_stop(query: InstanceQuery) -> int:
    query.fail_for_problems()
    url = Address.of_settings(query.settings).url
    if ask_readiness(url) is not None:
        raise CommandFailed(
            f"a gateway answers at {url}, and {run_folder(query.settings)} holds no PID file of it: end it where "
            "it runs, or name its --pid-file or --state-dir"
        )
    report(*running_elsewhere(query))
    return _print_stopped()


def _print_stopped() -> int:
    typer.echo("lcp-gateway is not running")
    return 0
