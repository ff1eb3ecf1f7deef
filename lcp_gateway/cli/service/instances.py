"""The gateways that run in the background on this machine: their files, the choice of one, and one command at a time for each."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lcp_gateway.cli.options import PartialSettings, partial_settings
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, report
from lcp_gateway.cli.service.pid_file import EMPTY, Condition, InstanceRecord, PidFile, read_pid_file, remove_pid_file
from lcp_gateway.cli.service.processes import find_process
from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.config.paths import state_folder
from lcp_gateway.telemetry.log_output import LogFile

INSTANCE_SETTINGS = ("http_addr", "state_dir", "pid_file")
"""The settings that say which gateway is meant."""

_NAMING = ("http_addr", "pid_file")
_READ = frozenset({*INSTANCE_SETTINGS, "log_file", "http_tls_cert", "start_timeout_s", "stop_timeout_s"})
_PID_SUFFIX, _LOG_SUFFIX, _LAST_SUFFIX = ".pid", ".log", ".last"
_STEM = "gateway-"
_PRIVATE_FOLDER = 0o700
_ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - a part of a file's name
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - nothing listens here
# Longer than a command needs for its own time-outs.
_LOCK_MARGIN_S = 15.0
_PAUSE_S = 0.05
_REPORT_AFTER_S = 1.0

_BACKGROUND_VARIABLE = "_LCP_GATEWAY_BACKGROUND"
"""Set by ``start`` for the gateway that it starts. It is not a setting, so that it is not listed among them."""


@dataclass(frozen=True, slots=True)
class InstanceFiles:
    """The files of one gateway, as absolute paths."""

    pid_file: Path
    log_file: Path


@dataclass(frozen=True, slots=True)
class InstanceQuery:
    """Which gateway a command is for, by flags, environment and file.

    ``found`` are the settings that say so. ``flags`` are all that were given.
    """

    found: PartialSettings
    flags: Mapping[str, object]

    @property
    def settings(self) -> Settings:
        """The settings; those that do not say which gateway is meant have their defaults."""
        return self.found.settings

    @property
    def problems(self) -> Sequence[str]:
        """The problems of the configuration."""
        return self.found.problems

    @property
    def is_named_by_flag(self) -> bool:
        """Whether a flag says which gateway is meant."""
        return any(self.flags.get(name) is not None for name in _NAMING)

    @property
    def is_configured(self) -> bool:
        """Whether a flag, the environment or the file says which gateway is meant."""
        return not self.found.given.isdisjoint(_NAMING)

    def fail_for_problems(self) -> None:
        """Fail where the configuration cannot be used: the gateway that is looked for may be somewhere else."""
        if self.problems:
            raise CommandFailed(*self.problems, exit_code=USAGE_ERROR)


def read_query(flags: Mapping[str, object], config: Path | None) -> InstanceQuery:
    """Read the settings that say which gateway is meant, and how long to wait for it."""
    try:
        found = partial_settings(_READ, flags=flags, environ=os.environ, config=config)
    except ValueError as error:
        raise CommandFailed(str(error), exit_code=USAGE_ERROR) from None
    return InstanceQuery(found, flags)


def files_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> InstanceFiles:
    """Return the files of a gateway with these settings; they are named after its host and port."""
    where = parse_host_port(settings.http_addr)
    host = "".join(
        character if character.isascii() and (character.isalnum() or character in ".-") else "_"
        for character in (where.host or _ALL_INTERFACES).lower()
    )
    stem = f"{_STEM}{host}-{where.port}"
    folder = run_folder(settings, environ)
    return InstanceFiles(
        pid_file=(settings.pid_file or folder / f"{stem}{_PID_SUFFIX}").absolute(),
        log_file=(settings.log_file or folder / f"{stem}{_LOG_SUFFIX}").absolute(),
    )


def run_folder(settings: Settings, environ: Mapping[str, str] = os.environ) -> Path:
    """Return the folder of PID files and logs."""
    return (settings.state_dir or state_folder(environ) / "run").absolute()


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, for their owner alone.

    Raises:
        OSError: it cannot be made.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(_PRIVATE_FOLDER, exist_ok=True)


def all_instances(settings: Settings) -> Sequence[PidFile]:
    """Return every PID file of the folder, and the one that the settings name."""
    paths = {files_of(settings).pid_file}
    with contextlib.suppress(OSError):
        paths.update(run_folder(settings).glob(f"{_STEM}*{_PID_SUFFIX}"))
    found = (read_pid_file(path) for path in sorted(paths))
    return [one for one in found if one is not None]


def find_instance(query: InstanceQuery) -> PidFile | None:
    """Return the gateway that is meant: the one that is named, else the only one; None where there is none."""
    named = read_pid_file(files_of(query.settings).pid_file)
    if named is None and query.is_configured and "pid_file" not in query.found.given:
        # `localhost:8080` also names the gateway that was started as 127.0.0.1:8080.
        named = _only_one([one for one in all_instances(query.settings) if _listens_at(one, query)])
    if query.is_named_by_flag or (named is not None and query.is_configured):
        return named
    return _only_one(all_instances(query.settings))


def running_elsewhere(query: InstanceQuery) -> Sequence[str]:
    """List the gateways that run, a line each, for an operator that named one that does not."""
    return [f"running: {describe_instance(one)}" for one in all_instances(query.settings) if one.running]


def describe_instance(found: PidFile) -> str:
    """Put a PID file into a line."""
    if (record := found.running) is not None:
        return f"{record.url} (PID {record.process.pid}, {found.path})"
    return f"{found.path}: {found.problem}"


def last_start_file(pid_file: Path) -> Path:
    """Return the file that records how the gateway of a PID file was last started; it stays when the gateway ends."""
    return pid_file.with_name(f"{pid_file.name}{_LAST_SUFFIX}")


def last_start(query: InstanceQuery) -> InstanceRecord | None:
    """Return how a gateway that does not run was last started: the one that is named, else the only one there was."""
    named = _record_of_start(last_start_file(files_of(query.settings).pid_file))
    if query.is_named_by_flag or (named and query.is_configured):
        return named
    paths = sorted(run_folder(query.settings).glob(f"{_STEM}*{_PID_SUFFIX}{_LAST_SUFFIX}"))
    records = [record for path in paths if (record := _record_of_start(path)) is not None]
    if len(records) > 1:
        raise CommandFailed(
            "several gateways were started here, and none runs: name one with --http-addr, --port or --pid-file",
            *(f"{record.url}, last started {record.since:%Y-%m-%d %H:%M} UTC" for record in records),
        )
    return records[0] if records else named


def remove_left_over(found: PidFile) -> None:
    """Remove a PID file of a gateway that does not run, and report it."""
    usual = found.path.name.startswith(_STEM) and found.path.suffix == _PID_SUFFIX
    if found.record is None and found.problem != EMPTY and not usual:
        raise CommandFailed(
            f"{found.path} exists and is not a PID file of lcp-gateway: remove it, or choose another --pid-file"
        )
    try:
        found.path.unlink(missing_ok=True)
    except OSError as error:
        raise CommandFailed(f"{found.path}: {found.problem}, and it cannot be removed: {error.strerror}") from None
    kind = "another user's" if found.condition is Condition.FOREIGN else "a stale"
    report(f"removed {kind} PID file, {found.path}: {found.problem}")


@contextlib.contextmanager
def exclusive_access(pid_file: Path, settings: Settings) -> Iterator[None]:
    """Keep other commands from this gateway for the block."""
    lock = pid_file.with_name(f"{pid_file.name}.lock")
    timeout_s = settings.start_timeout_s + settings.stop_timeout_s + _LOCK_MARGIN_S
    with contextlib.ExitStack() as stack:
        try:
            make_folder(lock.parent)
            waiting = "waiting for another command that starts or stops this gateway"
            stack.enter_context(locked(lock, timeout_s, lambda: report(waiting)))
        except LockTimeout:
            raise CommandFailed("another command still starts or stops this gateway: try again later") from None
        except OSError as error:
            raise CommandFailed(f"{lock}: cannot be written: {error.strerror}") from None
        yield


class LockTimeout(Exception):
    """Another process has held the lock for all of the time that there was."""


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file for the block; it is removed after it. The system releases it however the holder ends.

    ``waiting`` is called once when it takes a while.

    Raises:
        LockTimeout: it was not released within ``timeout_s``.
        OSError: the file cannot be made.
    """
    began, reported = time.monotonic(), False
    while (handle := _take(path)) is None:
        waited_s = time.monotonic() - began
        if waited_s > timeout_s:
            raise LockTimeout
        if waited_s > _REPORT_AFTER_S and not reported:
            waiting()
            reported = True
        time.sleep(_PAUSE_S)
    try:
        yield
    finally:
        # Removed while it is held: a process that waits for it then sees that the name is another file's, or gone.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def background_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which a gateway knows that it runs in the background."""
    return {**environ, _BACKGROUND_VARIABLE: "1"}


def is_background() -> bool:
    """Return whether this process was started by ``start``: true for the first call only, and not for its children."""
    return os.environ.pop(_BACKGROUND_VARIABLE, "") == "1"


@contextlib.contextmanager
def background_files(
    settings: Settings, on_log_moved: Callable[[], None] = lambda: None, *, files: InstanceFiles | None = None
) -> Iterator[None]:
    """Rotate the log of this process, which its output goes to already, and remove its PID file when it ends.

    ``on_log_moved`` is called, from a thread, after a rotation. ``files`` are those of the settings where none are given.
    """
    files = files or files_of(settings)
    try:
        with LogFile(files.log_file, max_bytes=settings.log_max_bytes, keep=settings.log_keep, on_moved=on_log_moved):
            yield
    finally:
        if (ourselves := find_process(os.getpid())) is not None:
            remove_pid_file(files.pid_file, ourselves)


def _record_of_start(path: Path) -> InstanceRecord | None:
    found = read_pid_file(path)
    return None if found is None or found.condition is Condition.FOREIGN else found.record


def _only_one(found: Sequence[PidFile]) -> PidFile | None:
    candidates = [one for one in found if one.running is not None] or found
    if len(candidates) > 1:
        raise CommandFailed(
            "there are several gateways: name one with --http-addr, --port or --pid-file",
            *map(describe_instance, candidates),
        )
    return candidates[0] if candidates else None


def _listens_at(one: PidFile, query: InstanceQuery) -> bool:
    """Return whether a gateway can be reached at the address that is asked for."""
    if one.record is None:
        return False
    asked, there = parse_host_port(query.settings.http_addr), parse_host_port(one.record.address)
    return asked.port == there.port and _same_host(asked.host.lower(), there.host.lower())


def _same_host(one: str, other: str) -> bool:
    return one == other or not {one, other}.isdisjoint(_EVERYWHERE) or _local(one) == _local(other)


def _local(host: str) -> str:
    is_loopback = host in {"localhost", "::1"} or host.startswith("127.")
    return "localhost" if is_loopback else host


def _take(path: Path) -> int | None:
    """Take the lock and return its handle; None where it is held."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(handle), path.lstat()):
            return handle
    except (BlockingIOError, FileNotFoundError):
        pass
    except BaseException:
        os.close(handle)
        raise
    os.close(handle)
    return None
