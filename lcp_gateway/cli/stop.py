"""``lcp-gateway stop``: ends a gateway in the background, in good order where it can."""

from collections.abc import Mapping
from pathlib import Path

import typer

from lcp_gateway.cli.ending import WouldNotEnd, end
from lcp_gateway.cli.flags import setting_flags
from lcp_gateway.cli.instances import (
    INSTANCE_SETTINGS,
    Question,
    ask,
    holding,
    meant,
    others,
    remove_left_over,
    run_folder,
)
from lcp_gateway.cli.outcome import CommandFailed, complain
from lcp_gateway.cli.pid_file import Condition, PidFile, read_pid_file, remove_pid_file
from lcp_gateway.cli.readiness import ask_readiness, url_of
from lcp_gateway.config import Settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
@setting_flags(groups=(), also=(*INSTANCE_SETTINGS, "stop_timeout_s"))
def stop(config: Path | None, flags: Mapping[str, object]) -> int:
    """Stop the gateway in the background. Running jobs may end first; one that does not go is killed."""
    question = ask(flags, config)
    found = meant(question)
    if found is None:
        return _nothing_to_stop(question)
    question.complain_of_problems()
    with holding(found.path, question.settings):
        # Somebody else may have stopped it while we waited.
        now = read_pid_file(found.path)
        if now is None:
            return _say_stopped()
        return stop_found(now, question.settings)


def stop_found(found: PidFile, settings: Settings) -> int:
    """Stop the gateway of a PID file, and remove the file; to be called while it is held.

    Raises:
        CommandFailed: it is not ours to stop, or is still there.
    """
    if found.condition is Condition.FOREIGN:
        raise CommandFailed(f"{found.path}: {found.problem}: that gateway is not yours to stop")
    if (record := found.running) is None:
        remove_left_over(found)
        return _say_stopped()
    process, timeout_s = record.process, settings.stop_timeout_s
    waiting = f"waiting for running jobs of PID {process.pid}, up to {timeout_s:g} s"
    try:
        killed = end(process, timeout_s, lambda: complain(waiting))
    except WouldNotEnd:
        raise CommandFailed(
            f"PID {process.pid} is still there after it was killed: it hangs in the system itself, on a disk perhaps"
        ) from None
    except OSError as error:
        raise CommandFailed(f"PID {process.pid} cannot be ended: {error.strerror}") from None
    # It takes the file away itself, if it could still do so.
    remove_pid_file(found.path, process)
    if killed:
        complain(
            f"it did not end within {timeout_s:g} s (stop_timeout_s) and was killed: "
            "see lcp-gateway purchases list --state unknown for what it may have been paying"
        )
    typer.echo(f"Stopped lcp-gateway at {record.url} (PID {process.pid})")
    return 0


def _nothing_to_stop(question: Question) -> int:
    question.fail_for_problems()
    url = url_of(question.settings)
    if ask_readiness(url) is not None:
        raise CommandFailed(
            f"a gateway answers at {url}, and there is no PID file of it in {run_folder(question.settings)}: end it where "
            "it runs, or name its --pid-file or --state-dir"
        )
    complain(*others(question))
    return _say_stopped()


def _say_stopped() -> int:
    typer.echo("lcp-gateway is not running")
    return 0
