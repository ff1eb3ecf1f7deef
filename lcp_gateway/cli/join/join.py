"""``lcp-gateway join``: runs a node, in the foreground or in the background, and shows how it does."""

import contextlib
import json as json_format
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core

from lcp_gateway.__about__ import __version__
from lcp_gateway.cli.join.options import FLAGS, JoinFiles, join_files, join_options, load_join, local_backends
from lcp_gateway.cli.options import CONFIG_OPTION, JsonOption, command_app, named_flags
from lcp_gateway.cli.output import CommandFailed, print_json, print_pairs, printable, report
from lcp_gateway.cli.serve.local_models import LocalModels, check_local_models, local_model_options
from lcp_gateway.cli.service.instances import background_environment, exclusive_access, is_background, make_folder
from lcp_gateway.cli.service.logs import LogFollower, last_lines
from lcp_gateway.cli.service.pid_file import (
    Condition,
    InstanceRecord,
    PidFile,
    read_pid_file,
    remove_pid_file,
    write_pid_file,
)
from lcp_gateway.cli.service.processes import Process, find_process, is_running
from lcp_gateway.cli.service.start import command_line_flags, spawn_logged, typed_flags
from lcp_gateway.cli.service.stop import ProcessSurvived, end_process
from lcp_gateway.config import Settings
from lcp_gateway.node_client.options import BackendOptions
from lcp_gateway.purchase.money import Msat, format_sat

_COMMANDS = ("run", "start", "stop", "status", "logs")
_USUAL = "run"
_PAUSE_S = 0.1
_SHOWN_LINES = 15
_STOPPED, _DEAD, _FOREIGN = 3, 1, 4
_MARGIN_S = 10.0


class _JoinGroup(typer.core.TyperGroup):
    """Reads ``join wss://…`` as ``join run wss://…``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in _COMMANDS and first != "--help" and not (not args and ctx.resilient_parsing):
            args = [_USUAL, *args]
        return super().parse_args(ctx, args)


app = command_app(
    cls=_JoinGroup,
    help="Serve the models of this machine to a gateway. Without a command it runs in the foreground: join URL.",
)
UrlArgument = Annotated[str, typer.Argument(metavar="[URL]", help="The gateway: wss://gateway.example.com.")]


@app.command()
@named_flags(FLAGS)
def run(
    flags: Mapping[str, object], *, url: UrlArgument = "", config: Annotated[Path | None, CONFIG_OPTION] = None
) -> int:
    """Run a node until it is stopped."""
    background = is_background()
    settings = load_join(url, flags, config).settings
    # What is wrong is said before any model is started.
    join_options(settings)
    local = local_model_options(settings)
    check_local_models(local)
    from lcp_gateway.cli.join.run import run_node  # noqa: PLC0415 - loads aiohttp

    with contextlib.ExitStack() as stack:
        backends: tuple[BackendOptions, ...] = ()
        if local.models:
            server = stack.enter_context(LocalModels(local, tell=report))
            backends = local_backends(settings, server.base_url, server.api_key)
        return run_node(settings, join_options(settings, backends), join_files(settings), background=background)


@app.command()
@named_flags(FLAGS)
def start(
    flags: Mapping[str, object], *, url: UrlArgument = "", config: Annotated[Path | None, CONFIG_OPTION] = None
) -> int:
    """Start a node in the background. Takes the flags of `run`, and waits until it has joined."""
    settings = load_join(url, flags, config).settings
    join_options(settings)
    check_local_models(local_model_options(settings))
    files = join_files(settings)
    with exclusive_access(files.pid_file, settings):
        found = read_pid_file(files.pid_file)
        if found is not None and found.running is not None:
            typer.echo(f"the node runs already (PID {found.running.process.pid})")
            return 0
        return _start(settings, files, flags, config)


@app.command()
@named_flags(FLAGS)
def stop(flags: Mapping[str, object], *, config: Annotated[Path | None, CONFIG_OPTION] = None) -> int:
    """Stop the node in the background. Running requests may end first."""
    settings = load_join("", flags, config).settings
    files = join_files(settings)
    with exclusive_access(files.pid_file, settings):
        found = read_pid_file(files.pid_file)
        if found is None or found.running is None:
            if found is not None and found.condition is Condition.FOREIGN:
                raise CommandFailed(f"{found.path}: {found.problem}: that node is not yours to stop")
            files.pid_file.unlink(missing_ok=True)
            typer.echo("the node is not running")
            return 0
        process, timeout_s = found.running.process, settings.join_drain_s + _MARGIN_S
        waiting = f"waiting for running requests of PID {process.pid}, up to {timeout_s:g} s"
        try:
            killed = end_process(process, timeout_s, lambda: report(waiting))
        except (ProcessSurvived, OSError):
            raise CommandFailed(f"PID {process.pid} cannot be ended") from None
        remove_pid_file(files.pid_file, process)
        typer.echo(f"Stopped the node (PID {process.pid}){', which had to be killed' if killed else ''}")
        return 0


@app.command()
@named_flags(FLAGS)
def status(
    flags: Mapping[str, object], *, json: JsonOption = False, config: Annotated[Path | None, CONFIG_OPTION] = None
) -> int:
    """Show whether the node runs, what it serves, and what it has earned since its start."""
    settings = load_join("", flags, config).settings
    files = join_files(settings)
    found, state = read_pid_file(files.pid_file), _read_status(files.status_file)
    is_here = state is not None and is_running(Process(state.get("pid", 0), state.get("started", "")))
    if state is None or (not is_here and state.get("state") != "stopped"):
        state = {"state": "dead" if found is not None or state is not None else "stopped"}
    if json:
        print_json(state)
    else:
        print_pairs(_pairs(state, files))
    return _exit_code(found, is_here=is_here, is_dead=state.get("state") == "dead")


@app.command()
@named_flags(FLAGS)
def logs(
    flags: Mapping[str, object],
    *,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many lines.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is appended.")] = False,
    config: Annotated[Path | None, CONFIG_OPTION] = None,
) -> int:
    """Show the log of the node in the background."""
    path = join_files(load_join("", flags, config).settings).log_file
    with LogFollower(path) as log:
        try:
            sys.stdout.buffer.write(last_lines(path, lines))
        except FileNotFoundError:
            raise CommandFailed(f"there is no log {path}") from None
        sys.stdout.flush()
        while follow:
            sys.stdout.buffer.write(log.read())
            sys.stdout.flush()
            time.sleep(_PAUSE_S)
    return 0


def _start(settings: Settings, files: JoinFiles, flags: Mapping[str, object], config: Path | None) -> int:
    for path in (files.pid_file, files.log_file):
        make_folder(path.parent)
    files.status_file.unlink(missing_ok=True)
    typed = typed_flags({**flags, "join_url": settings.join_url})
    absolute = config.expanduser().absolute() if config is not None else None
    # The address stands by itself.
    own = {name: value for name, value in typed.items() if name != "join_url"}
    arguments = ["join", _USUAL, str(typed["join_url"]), *command_line_flags(own, absolute)]
    child = spawn_logged(arguments, files.log_file, background_environment(os.environ))
    process = find_process(child.pid) or Process(child.pid, "")
    record = InstanceRecord(
        process=process,
        address=files.pid_file.stem,
        url=settings.join_url,
        version=__version__,
        since=datetime.now(UTC),
        log_file=files.log_file,
        folder=Path.cwd(),
        config=absolute,
        flags=dict(typed),
        variables=(),
    )
    write_pid_file(files.pid_file, record)
    state = _wait(child, files, settings.start_timeout_s)
    if child.returncode is not None:
        remove_pid_file(files.pid_file, process)
        text = last_lines(files.log_file, _SHOWN_LINES).decode("utf-8", "replace")
        sys.stderr.write("".join(f"  {printable(line)[:400]}\n" for line in text.splitlines()))
        raise CommandFailed("the node ended before it had joined", exit_code=max(child.returncode, 1))
    if state != "connected":
        report(f"it has not joined yet, and goes on trying: {state}")
    typer.echo(f"Started the node, joined to {settings.join_url}" if state == "connected" else "Started the node")
    print_pairs((("PID", str(process.pid)), ("PID file", str(files.pid_file)), ("Log file", str(files.log_file))))
    return 0


def _wait(child: subprocess.Popen[bytes], files: JoinFiles, timeout_s: float) -> str:
    deadline, state = time.monotonic() + timeout_s, "it has not begun"
    while time.monotonic() < deadline and child.poll() is None:
        if (found := _read_status(files.status_file)) is not None:
            state = str(found.get("state"))
            if state == "connected":
                break
        time.sleep(_PAUSE_S)
    return state


def _read_status(path: Path) -> dict[str, Any] | None:
    try:
        found = json_format.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _pairs(state: Mapping[str, Any], files: JoinFiles) -> list[tuple[str, str]]:
    pairs = [("State", str(state.get("state")))]
    if "gateway" in state:
        pairs += [
            ("Gateway", f"{state['gateway']} as {state['node_id'] or '(not joined yet)'}"),
            ("Since", str(state["since"])),
            ("Models offered", ", ".join(state["offered"]) or "none"),
            *((f"Not offered: {name}", str(why)) for name, why in state["refused"].items()),
            ("Running", str(state["running"])),
            ("Requests", f"{state['requests']} ({state['failed']} failed, {state['cancelled']} cancelled)"),
            ("Tokens", f"{state['input_tokens']} in, {state['output_tokens']} out"),
            ("Earned", f"{format_sat(Msat(int(state['earned_msat'])))} for {state['delivered']} results"),
        ]
    return [*pairs, ("Log file", str(files.log_file))]


def _exit_code(found: PidFile | None, *, is_here: bool, is_dead: bool) -> int:
    """Return the exit code of the LSB: 0 it runs, 1 dead, 3 stopped, 4 not known."""
    if is_here:
        return 0
    if found is not None and found.condition is Condition.FOREIGN:
        return _FOREIGN
    return _DEAD if is_dead else _STOPPED
