"""``lcp-gateway start``: the gateway in the background, ready when the command returns."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import typer

import lcp_gateway
from lcp_gateway.__about__ import __version__
from lcp_gateway.cli.gateway_client import Readiness, ask_readiness, url_of
from lcp_gateway.cli.options import GroupedHelp, load_settings, setting_flags
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, print_pairs, printable, report
from lcp_gateway.cli.serve.embedded import NO_REAL_MONEY
from lcp_gateway.cli.serve.serve import check_node
from lcp_gateway.cli.service.instances import (
    InstanceFiles,
    background_environment,
    exclusive_access,
    files_of,
    last_start_file,
    make_folder,
    remove_left_over,
)
from lcp_gateway.cli.service.logs import LogFollower
from lcp_gateway.cli.service.pid_file import (
    InstanceRecord,
    PidFile,
    read_pid_file,
    remove_pid_file,
    write_pid_file,
)
from lcp_gateway.cli.service.processes import Process, find_process
from lcp_gateway.cli.service.stop import end_process
from lcp_gateway.config import (
    Loaded,
    Settings,
    SourceKind,
    Spec,
    parse_host_port,
    specs,
    spending_cautions,
)
from lcp_gateway.config.addresses import JOURNAL_OFF
from lcp_gateway.config.sources import CONFIG_VARIABLE
from lcp_gateway.telemetry.log_file import open_log

LISTENING = b" listening on http"
"""What the gateway's greeting says once the port is its own. An answer before that would be somebody else's."""

_PAUSE_S = 0.1
_END_WITHIN_S = 10.0
_KEPT_LOG_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What is started, and how it is told from others. ``flags`` go by the names of the settings, as they were typed."""

    address: str
    url: str
    flags: Mapping[str, str | bool]
    config: Path | None
    folder: Path
    files: InstanceFiles
    variables: tuple[str, ...]
    timeout_s: float


class NotStarted(Exception):
    """The gateway did not become ready, and is gone again.

    ``exit_code`` is its own where it ended by itself. ``log`` is the end of what it wrote.
    """

    def __init__(self, why: str, *, exit_code: int = 1, log: bytes = b"") -> None:
        super().__init__(why)
        self.exit_code = exit_code
        self.log = log


def start_process(launch: Launch) -> tuple[Process, Readiness]:
    """Start it and wait until it is ready. Nothing of it is left behind when that fails, or is interrupted.

    Raises:
        NotStarted: it ended, or was not ready in time.
        OSError: one of its files cannot be written.
    """
    for folder in (launch.files.pid_file.parent, launch.files.log_file.parent):
        make_folder(folder)
    with LogFollower(launch.files.log_file) as log, _RaisingSignals():
        child = _spawn(launch)
        # One that has ended already is nobody: what is waited for below says so.
        process = find_process(child.pid) or Process(child.pid, "")
        try:
            record = _record(launch, process)
            write_pid_file(launch.files.pid_file, record)
            readiness = _wait(child, log, launch)
        except BaseException:
            # Its end is waited for by us: who is not waited for stays in the table of processes.
            end_process(process, _END_WITHIN_S, lambda: None)
            remove_pid_file(launch.files.pid_file, process)
            child.wait()
            raise
    with contextlib.suppress(OSError):
        # It stays when the gateway is stopped, for a later restart; without it that takes no flags over.
        write_pid_file(last_start_file(launch.files.pid_file), record)
    return process, readiness


def command_line_flags(flags: Mapping[str, str | bool], config: Path | None) -> list[str]:
    """Write flags as they stand on a command line."""
    known = specs()
    written = ["--config", str(config)] if config is not None else []
    for name, value in flags.items():
        flag = known[name].flag
        match value:
            case True:
                written.append(flag)
            case False:
                written.append(f"--no-{flag.removeprefix('--')}")
            case _:
                written.append(f"{flag}={value}")
    return written


def _spawn(launch: Launch) -> subprocess.Popen[bytes]:
    environment = background_environment(os.environ)
    if Path(lcp_gateway.__file__).parents[1] != launch.folder:
        # Whatever lies in the folder that somebody happens to be in, it is not the program.
        environment["PYTHONSAFEPATH"] = "1"
    log = open_log(launch.files.log_file)
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter, module and flags
            [
                sys.executable,
                "-m",
                "lcp_gateway",
                "serve",
                *command_line_flags(launch.flags, launch.config),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=launch.folder,
            # Neither the terminal's end nor its Ctrl-C reaches it.
            start_new_session=True,
        )
    finally:
        os.close(log)


def _record(launch: Launch, process: Process) -> InstanceRecord:
    return InstanceRecord(
        process=process,
        address=launch.address,
        url=launch.url,
        version=__version__,
        since=datetime.now(UTC),
        log_file=launch.files.log_file,
        folder=launch.folder,
        config=launch.config,
        flags=dict(launch.flags),
        variables=launch.variables,
    )


def _wait(child: subprocess.Popen[bytes], log: LogFollower, launch: Launch) -> Readiness:
    deadline = time.monotonic() + launch.timeout_s
    told, listening, why = b"", False, "it does not listen yet"
    while True:
        code = child.poll()
        told += log.read()
        if code is not None:
            raise NotStarted(_ended(code), exit_code=max(code, 1), log=told)
        listening = listening or LISTENING in told
        told = told[-_KEPT_LOG_BYTES:]
        if listening:
            readiness = ask_readiness(launch.url)
            if readiness is not None and readiness.ready:
                return readiness
            why = "; ".join(readiness.reasons) if readiness else "it does not answer"
        if time.monotonic() > deadline:
            raise NotStarted(
                f"the gateway was not ready within {launch.timeout_s:g} s (start_timeout_s) and was ended: {why}",
                log=told,
            )
        time.sleep(_PAUSE_S)


def _ended(code: int) -> str:
    how = f"by signal {-code}" if code < 0 else f"with code {code}"
    return f"the gateway ended {how} before it was ready"


class _RaisingSignals:
    """Lets signals that would end this process raise instead, so that what it has begun can be undone."""

    _NUMBERS = (signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], object] | int | None] = {}

    def __enter__(self) -> None:
        for number in self._NUMBERS:
            self._before[number] = signal.signal(number, _raise)

    def __exit__(self, *_error: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


def _raise(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)

_PATH_FORMS = ("file", "folder")
_SHOWN_LINES = 15
_SHOWN_CHARACTERS = 400
_TAKEN = "cannot listen on"


@dataclass(frozen=True, slots=True)
class StartPlan:
    """A gateway that can be started: its configuration was read and found good."""

    loaded: Loaded
    launch: Launch

    @property
    def settings(self) -> Settings:
        """What it is started with."""
        return self.loaded.settings

    @property
    def files(self) -> InstanceFiles:
        """Where its files are."""
        return self.launch.files


@app.command(cls=GroupedHelp)
@setting_flags()
def start(config: Path | None, flags: Mapping[str, object]) -> int:
    """Start the gateway in the background. Waits until it is ready. Takes the flags of `serve`."""
    plan = plan_start(flags, config)
    with exclusive_access(plan.files.pid_file, plan.settings):
        return start_planned(plan)


def plan_start(flags: Mapping[str, object], config: Path | None) -> StartPlan:
    """Read the configuration as ``serve`` will, from the folder that we are in. Nothing is started yet.

    Raises:
        CommandFailed: it cannot be used, or not in the background.
    """
    loaded = load_settings(flags, config)
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
    return StartPlan(loaded, launch)


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


def start_planned(plan: StartPlan) -> int:
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
    report(*(f"warning: {warning}" for warning in warnings))
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


def _runs_already(plan: StartPlan, found: PidFile) -> int:
    if (record := found.running) is None or record.address != plan.launch.address:
        other = record.url if record is not None else "another address"
        raise CommandFailed(
            f"{found.path} is that of a gateway at {other}: choose another --pid-file, or end that one"
        )
    typer.echo(f"lcp-gateway runs already at {record.url} (PID {record.process.pid})")
    if (plan.launch.flags, plan.launch.config) != (record.flags, record.config):
        report("it was started with other flags: lcp-gateway restart takes these")
    return 0


def _explained(error: NotStarted, plan: StartPlan) -> CommandFailed:
    """Show the end of the log, and give what to say."""
    text = error.log.decode("utf-8", "replace")
    lines = [printable(line)[:_SHOWN_CHARACTERS] for line in text.splitlines() if line.strip()]
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
