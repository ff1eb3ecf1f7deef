"""``lcp-gateway logs``: what a gateway in the background has written, and what it goes on to write."""

import os
import select
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from lcp_gateway.cli.flags import setting_flags
from lcp_gateway.cli.instances import (
    INSTANCE_SETTINGS,
    Question,
    ask,
    files_of,
    is_named_by_flag,
    meant,
    run_folder,
)
from lcp_gateway.cli.log_tail import Follower, last_lines
from lcp_gateway.cli.outcome import CommandFailed

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_PAUSE_MS = 250


@app.command()
@setting_flags(groups=(), also=(*INSTANCE_SETTINGS, "log_file"))
def logs(
    config: Path | None,
    flags: Mapping[str, object],
    *,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on.")
    ] = False,
    lines: Annotated[
        int, typer.Option("--lines", "-n", min=0, metavar="N", help="Begin with so many lines.")
    ] = 100,
) -> int:
    """Print the log of the gateway in the background. It need not run."""
    path = _log_of(ask(flags, config))
    try:
        with Follower(path) as follower:
            _print(last_lines(path, lines))
            while follow and _wait():
                _print(follower.read())
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        _forget_output()
    except FileNotFoundError:
        raise CommandFailed(f"there is no log at {path}: no gateway was started there") from None
    except OSError as error:
        raise CommandFailed(f"{path}: cannot be read: {error.strerror}") from None
    return 0


def _log_of(question: Question) -> Path:
    """Find the log that is meant: of the gateway that is, or of the last one that was."""
    usual = files_of(question.settings).log_file
    if question.flags.get("log_file") is not None:
        return usual
    found = meant(question)
    if found is not None and found.record is not None:
        return found.record.log_file
    question.fail_for_problems()
    configured = "log_file" in question.found.given
    if usual.exists() or configured or is_named_by_flag(question):
        return usual
    others = sorted(run_folder(question.settings).glob("gateway-*.log"))
    if len(others) > 1:
        raise CommandFailed(
            "there are several logs: name one with --http-addr or --log-file", *map(str, others)
        )
    return others[0] if others else usual


def _print(text: bytes) -> None:
    sys.stdout.buffer.write(text)
    sys.stdout.buffer.flush()


def _wait() -> bool:
    """Wait a moment; false when nobody reads our output any more, which no writing tells while the log is silent."""
    poll = select.poll()
    poll.register(sys.stdout.fileno(), 0)
    if poll.poll(_PAUSE_MS):
        _forget_output()
        return False
    return True


def _forget_output() -> None:
    """Have what the interpreter writes at its end go nowhere, and not fail."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
