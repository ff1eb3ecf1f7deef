"""``lcp-gateway start``: the gateway in the background, ready when the command returns."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType

import typer

import lcp_gateway
from lcp_gateway.__about__ import __version__
from lcp_gateway.cli.gateway_client import Address, Readiness, ask_readiness
from lcp_gateway.cli.options import GroupedHelp, command_app, load_settings, setting_flags
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, print_pairs, printable, report
from lcp_gateway.cli.serve.embedded import banner_of, check_node
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
from lcp_gateway.cli.service.pid_file import InstanceRecord, PidFile, read_pid_file, remove_pid_file, write_pid_file
from lcp_gateway.cli.service.processes import Process, find_process
from lcp_gateway.cli.service.stop import end_process
from lcp_gateway.config import Loaded, Settings, SourceKind, Spec, parse_host_port, specs, spending_warnings
from lcp_gateway.config.addresses import JOURNAL_OFF
from lcp_gateway.config.sources import CONFIG_VARIABLE
from lcp_gateway.telemetry.log_output import open_log

app = command_app()

LISTENING = b" listening on http"
"""The words of the gateway's greeting once the port is its own. A response before that would be another server's."""

_PAUSE_S = 0.1
_END_WITHIN_S = 10.0
_KEPT_LOG_BYTES = 64 * 2**10
_PATH_FORMS = ("file", "folder")
_SHOWN_LINES = 15
_SHOWN_CHARACTERS = 400
_TAKEN = "cannot listen on"


@dataclass(frozen=True, slots=True)
class StartPlan:
    """A gateway that can be started: its configuration was read and is valid.

    ``flags`` go by the names of the settings, as they were typed; ``variables`` are the names of the environment
    variables that hold settings.
    """

    loaded: Loaded
    flags: Mapping[str, str | bool]
    config: Path | None
    folder: Path
    files: InstanceFiles
    variables: tuple[str, ...]

    @property
    def settings(self) -> Settings:
        """The settings that it is started with."""
        return self.loaded.settings

    @property
    def url(self) -> str:
        """Where it is reached from this machine."""
        return Address.of_settings(self.settings).url


class NotStarted(Exception):
    """The gateway did not become ready, and was ended.

    ``exit_code`` is its own where it ended by itself. ``log`` is the end of its log.
    """

    def __init__(self, why: str, *, exit_code: int = 1, log: bytes = b"") -> None:
        super().__init__(why)
        self.exit_code = exit_code
        self.log = log


@app.command(cls=GroupedHelp)
@setting_flags()
def start(config: Path | None, flags: Mapping[str, object]) -> int:
    """Start the gateway in the background. Waits until it is ready. Takes the flags of `serve`."""
    plan = plan_start(flags, config)
    with exclusive_access(plan.files.pid_file, plan.settings):
        return start_planned(plan)


def plan_start(flags: Mapping[str, object], config: Path | None) -> StartPlan:
    """Read the configuration as ``serve`` will, from the present folder. Nothing is started yet."""
    loaded = load_settings(flags, config)
    settings = loaded.settings
    if not parse_host_port(settings.http_addr).port:
        raise CommandFailed(
            f"{loaded.source_of('http_addr')}: a gateway in the background needs a port of its own, not 0",
            exit_code=USAGE_ERROR,
        )
    check_node(settings)
    return StartPlan(
        loaded,
        flags=typed_flags(flags),
        config=config.expanduser().absolute() if config is not None else None,
        folder=Path.cwd(),
        files=files_of(settings),
        variables=_variables(loaded),
    )


def typed_flags(flags: Mapping[str, object]) -> dict[str, str | bool]:
    """Return the flags that were given, with absolute paths."""
    known = specs()
    given: dict[str, str | bool] = {}
    for name, value in flags.items():
        if isinstance(value, str) and _is_path(known[name], value.strip()):
            given[name] = str(Path(value.strip()).expanduser().absolute())
        elif isinstance(value, str | bool):
            given[name] = value
    return given


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


def start_planned(plan: StartPlan) -> int:
    """Start the planned gateway, and print where it is; to be called with exclusive access to it."""
    found = read_pid_file(plan.files.pid_file)
    if found is not None and found.running is not None:
        return _report_running(plan, found)
    if ask_readiness(plan.url) is not None:
        raise CommandFailed(
            f"a gateway that was not started with these settings answers at {plan.url}: "
            "end it first, or choose another --http-addr"
        )
    if found is not None:
        remove_left_over(found)
    try:
        process, readiness = _start_process(plan)
    except NotStarted as error:
        raise _failure(error, plan) from None
    except OSError as error:
        raise CommandFailed(
            f"{error.filename or plan.files.pid_file.parent}: cannot be used: {error.strerror}"
        ) from None
    # After a failure, they are among the lines of the log that were shown.
    warnings = [*plan.loaded.warnings, *spending_warnings(plan.settings)]
    report(*(f"warning: {warning}" for warning in warnings))
    for line in banner_of(plan.settings):
        typer.echo(line)
    typer.echo(f"Started lcp-gateway at {plan.url} ({readiness.peers} peers)")
    print_pairs(
        (("PID", str(process.pid)), ("PID file", str(plan.files.pid_file)), ("Log file", str(plan.files.log_file)))
    )
    return 0


def _report_running(plan: StartPlan, found: PidFile) -> int:
    if (record := found.running) is None or record.address != plan.settings.http_addr:
        other = record.url if record is not None else "another address"
        raise CommandFailed(f"{found.path} is that of a gateway at {other}: choose another --pid-file, or end that one")
    typer.echo(f"lcp-gateway runs already at {record.url} (PID {record.process.pid})")
    if (plan.flags, plan.config) != (record.flags, record.config):
        report("it was started with other flags: lcp-gateway restart takes these")
    return 0


def _failure(error: NotStarted, plan: StartPlan) -> CommandFailed:
    """Show the end of the log, and return the error of the command."""
    text = error.log.decode("utf-8", "replace")
    lines = [printable(line)[:_SHOWN_CHARACTERS] for line in text.splitlines() if line.strip()]
    if lines:
        sys.stderr.write("".join(f"  {line}\n" for line in lines[-_SHOWN_LINES:]))
    reasons = [str(error)]
    if _TAKEN in text:
        reasons.append(f"another program listens at {plan.settings.http_addr}: end it, or choose another --http-addr")
    reasons.append(f"the log is {plan.files.log_file}")
    return CommandFailed(*reasons, exit_code=error.exit_code)


def _start_process(plan: StartPlan) -> tuple[Process, Readiness]:
    """Start it and wait until it is ready. Nothing of it is left behind when that fails, or is interrupted.

    Raises:
        NotStarted: it ended, or was not ready in time.
        OSError: one of its files cannot be written.
    """
    for folder in (plan.files.pid_file.parent, plan.files.log_file.parent):
        make_folder(folder)
    with LogFollower(plan.files.log_file) as log, _signals_raise():
        child = _spawn(plan)
        # A child that has ended already is not found: the wait below then fails and says so.
        process = find_process(child.pid) or Process(child.pid, "")
        try:
            record = _record(plan, process)
            write_pid_file(plan.files.pid_file, record)
            readiness = _wait(child, log, plan)
        except BaseException:
            # The parent must wait for the child: else its entry stays in the table of processes.
            end_process(process, _END_WITHIN_S, lambda: None)
            remove_pid_file(plan.files.pid_file, process)
            child.wait()
            raise
    with contextlib.suppress(OSError):
        # It stays when the gateway is stopped, for a later restart; without it that restart takes no flags over.
        write_pid_file(last_start_file(plan.files.pid_file), record)
    return process, readiness


def _spawn(plan: StartPlan) -> subprocess.Popen[bytes]:
    environment = background_environment(os.environ)
    if Path(lcp_gateway.__file__).parents[1] != plan.folder:
        # Modules in the present folder must not be imported.
        environment["PYTHONSAFEPATH"] = "1"
    arguments = ["serve", *command_line_flags(plan.flags, plan.config)]
    return spawn_logged(arguments, plan.files.log_file, environment, plan.folder)


def spawn_logged(
    arguments: Sequence[str], log_file: Path, environment: Mapping[str, str], folder: Path | None = None
) -> subprocess.Popen[bytes]:
    """Start this program with other arguments, in the present folder if none is given; its output goes into a log.

    Raises:
        OSError: the log cannot be written.
    """
    log = open_log(log_file)
    try:
        return subprocess.Popen(  # noqa: S603 - our own interpreter, module and flags
            [sys.executable, "-m", "lcp_gateway", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=environment,
            cwd=folder,
            # Neither closing the terminal nor Ctrl-C in it ends the child.
            start_new_session=True,
        )
    finally:
        os.close(log)


def _record(plan: StartPlan, process: Process) -> InstanceRecord:
    return InstanceRecord(
        process=process,
        address=plan.settings.http_addr,
        url=plan.url,
        version=__version__,
        since=datetime.now(UTC),
        log_file=plan.files.log_file,
        folder=plan.folder,
        config=plan.config,
        flags=dict(plan.flags),
        variables=plan.variables,
    )


def _wait(child: subprocess.Popen[bytes], log: LogFollower, plan: StartPlan) -> Readiness:
    timeout_s = plan.settings.start_timeout_s
    deadline = time.monotonic() + timeout_s
    written, listening, why = b"", False, "it does not listen yet"
    while True:
        code = child.poll()
        written += log.read()
        if code is not None:
            how = f"by signal {-code}" if code < 0 else f"with code {code}"
            raise NotStarted(f"the gateway ended {how} before it was ready", exit_code=max(code, 1), log=written)
        listening = listening or LISTENING in written
        written = written[-_KEPT_LOG_BYTES:]
        if listening:
            readiness = ask_readiness(plan.url)
            if readiness is not None and readiness.ready:
                return readiness
            why = "; ".join(readiness.reasons) if readiness else "it does not answer"
        if time.monotonic() > deadline:
            raise NotStarted(
                f"the gateway was not ready within {timeout_s:g} s (start_timeout_s) and was ended: {why}", log=written
            )
        time.sleep(_PAUSE_S)


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Have the signals that would end this process raise instead for the block, so that it can clean up."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {one: signal.signal(one, leave) for one in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_path(spec: Spec, value: str) -> bool:
    if spec.name == "journal_url":
        return value not in {"", JOURNAL_OFF} and "://" not in value
    return bool(value) and spec.form.name in _PATH_FORMS


def _variables(loaded: Loaded) -> tuple[str, ...]:
    """Return the names of the variables that the settings come from."""
    kinds = {SourceKind.ENVIRONMENT, SourceKind.OPENAI_SERVE, SourceKind.OPENCLAW}
    sources = map(loaded.source_of, type(loaded.settings).model_fields)
    found = {source.where for source in sources if source.kind in kinds}
    if os.environ.get(CONFIG_VARIABLE):
        found.add(CONFIG_VARIABLE)
    return tuple(sorted(found))
