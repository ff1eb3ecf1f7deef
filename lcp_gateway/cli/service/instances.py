"""The gateways that run in the background on this machine: their files, which of them is meant, and one command at a time for each."""

import contextlib
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lcp_gateway.cli.options import PartialSettings, partial_settings
from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed, report
from lcp_gateway.cli.service.pid_file import (
    EMPTY,
    Condition,
    InstanceRecord,
    PidFile,
    read_pid_file,
    remove_pid_file,
)
from lcp_gateway.cli.service.processes import find_process
from lcp_gateway.config import Settings, parse_host_port
from lcp_gateway.config.derived import state_folder
from lcp_gateway.telemetry.log_file import LogFile

_PAUSE_S = 0.05
_TELL_AFTER_S = 1.0


class LockTimeout(Exception):
    """Somebody else has held the lock for all of the time that there was."""


@contextlib.contextmanager
def locked(path: Path, timeout_s: float, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a lock file for the block; it is removed after it. ``waiting`` is called once when that takes a while.

    Raises:
        StillLocked: it was not to be had in ``timeout_s``.
        OSError: there can be no such file.
    """
    began, told = time.monotonic(), False
    while (handle := _take(path)) is None:
        waited_s = time.monotonic() - began
        if waited_s > timeout_s:
            raise LockTimeout
        if waited_s > _TELL_AFTER_S and not told:
            waiting()
            told = True
        time.sleep(_PAUSE_S)
    try:
        yield
    finally:
        # Removed while it is held: who waits for it sees that the name is another file's by then, or nobody's.
        with contextlib.suppress(OSError):
            path.unlink()
        os.close(handle)


def _take(path: Path) -> int | None:
    """Take the lock, and give its handle; ``None`` where it is held."""
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


INSTANCE_SETTINGS = ("http_addr", "state_dir", "pid_file")
"""The settings that say which gateway is meant."""

_NAMING = ("http_addr", "pid_file")
_READ = frozenset(
    {*INSTANCE_SETTINGS, "log_file", "http_tls_cert", "start_timeout_s", "stop_timeout_s"}
)
_PID_SUFFIX, _LOG_SUFFIX, _LAST_SUFFIX = ".pid", ".log", ".last"
_STEM = "gateway-"
_PRIVATE_FOLDER = 0o700
_ALL_INTERFACES = "0.0.0.0"  # noqa: S104 - a part of a file's name
_SEVERAL = "there are several gateways: name one with --http-addr, --port or --pid-file"
_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104 - nothing listens here
# Longer than a command takes for its own time-outs.
_LOCK_MARGIN_S = 15.0


@dataclass(frozen=True, slots=True)
class InstanceFiles:
    """Where the files of one gateway are, as absolute paths."""

    pid_file: Path
    log_file: Path


@dataclass(frozen=True, slots=True)
class InstanceQuery:
    """Which gateway somebody asks for, by flags, environment and file.

    ``found`` are the settings that say so. ``flags`` are all that were given.
    """

    found: PartialSettings
    flags: Mapping[str, object]

    @property
    def settings(self) -> Settings:
        """The settings; those that have nothing to do with it are the default ones."""
        return self.found.settings

    @property
    def problems(self) -> Sequence[str]:
        """What of the configuration cannot be used."""
        return self.found.problems

    def complain_of_problems(self) -> None:
        """Say what is wrong with the configuration, where something is."""
        report(*self.problems)

    def fail_for_problems(self) -> None:
        """Give up where the configuration cannot be used: what was looked for may be somewhere else.

        Raises:
            CommandFailed: it cannot.
        """
        if self.problems:
            raise CommandFailed(*self.problems, exit_code=USAGE_ERROR)


def files_of(settings: Settings, environ: Mapping[str, str] = os.environ) -> InstanceFiles:
    """Give where the files of a gateway with these settings are."""
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
    """Give the folder of PID files and logs."""
    return (settings.state_dir or state_folder(environ) / "run").absolute()


def last_start_file(pid_file: Path) -> Path:
    """Give the file that says how the gateway of a PID file was started last; it stays when the gateway ends."""
    return pid_file.with_name(f"{pid_file.name}{_LAST_SUFFIX}")


def last_start(question: InstanceQuery) -> InstanceRecord | None:
    """Find how a gateway that does not run was started last: the one that is named, else the only one that ever was.

    Raises:
        CommandFailed: several were, and nothing says which is meant.
    """
    named = _record_of_start(last_start_file(files_of(question.settings).pid_file))
    if is_named_by_flag(question) or (named and not question.found.given.isdisjoint(_NAMING)):
        return named
    paths = sorted(run_folder(question.settings).glob(f"{_STEM}*{_PID_SUFFIX}{_LAST_SUFFIX}"))
    records = [record for path in paths if (record := _record_of_start(path)) is not None]
    if len(records) > 1:
        raise CommandFailed(
            "several gateways were started here, and none runs: name one with --http-addr, --port or --pid-file",
            *(
                f"{record.url}, last started {record.since:%Y-%m-%d %H:%M} UTC"
                for record in records
            ),
        )
    return records[0] if records else named


def _record_of_start(path: Path) -> InstanceRecord | None:
    found = read_pid_file(path)
    return None if found is None or found.condition is Condition.FOREIGN else found.record


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it, for their owner alone.

    Raises:
        OSError: it cannot be made.
    """
    missing = [one for one in (folder, *folder.parents) if not one.exists()]
    for one in reversed(missing):
        one.mkdir(_PRIVATE_FOLDER, exist_ok=True)


def read_query(flags: Mapping[str, object], config: Path | None) -> InstanceQuery:
    """Read what says which gateway is meant, and how long to wait for it.

    Raises:
        CommandFailed: a flag cannot be used.
    """
    try:
        found = partial_settings(_READ, flags=flags, environ=os.environ, config=config)
    except ValueError as error:
        raise CommandFailed(str(error), exit_code=USAGE_ERROR) from None
    return InstanceQuery(found, flags)


def all_instances(settings: Settings) -> Sequence[PidFile]:
    """Give every PID file of the folder, and the one that the settings name."""
    paths = {files_of(settings).pid_file}
    with contextlib.suppress(OSError):
        paths.update(run_folder(settings).glob(f"{_STEM}*{_PID_SUFFIX}"))
    found = (read_pid_file(path) for path in sorted(paths))
    return [one for one in found if one is not None]


def find_instance(question: InstanceQuery) -> PidFile | None:
    """Find the gateway that is meant: the one that is named, else the only one; ``None`` where there is none.

    Raises:
        CommandFailed: there are several, and nothing says which.
    """
    named = read_pid_file(files_of(question.settings).pid_file)
    configured = not question.found.given.isdisjoint(_NAMING)
    if named is None and configured and "pid_file" not in question.found.given:
        # `localhost:8080` names the gateway that was started as 127.0.0.1:8080 just as well.
        there = [one for one in all_instances(question.settings) if _listens_at(one, question)]
        named = _the_only(there)
    if is_named_by_flag(question) or (named is not None and configured):
        return named
    return _the_only(all_instances(question.settings))


def _the_only(found: Sequence[PidFile]) -> PidFile | None:
    candidates = [one for one in found if one.running is not None] or found
    if len(candidates) > 1:
        raise CommandFailed(_SEVERAL, *map(describe_instance, candidates))
    return candidates[0] if candidates else None


def _listens_at(one: PidFile, question: InstanceQuery) -> bool:
    """Tell whether a gateway can be reached at the address that is asked for."""
    if one.record is None:
        return False
    asked, there = parse_host_port(question.settings.http_addr), parse_host_port(one.record.address)
    return asked.port == there.port and _same_host(asked.host.lower(), there.host.lower())


def _same_host(one: str, other: str) -> bool:
    return one == other or not {one, other}.isdisjoint(_EVERYWHERE) or _local(one) == _local(other)


def _local(host: str) -> str:
    is_loopback = host in {"localhost", "::1"} or host.startswith("127.")
    return "localhost" if is_loopback else host


def is_named_by_flag(question: InstanceQuery) -> bool:
    """Tell whether a flag says which gateway is meant."""
    return any(question.flags.get(name) is not None for name in _NAMING)


def running_elsewhere(question: InstanceQuery) -> Sequence[str]:
    """Give the gateways that run, for somebody who asked for one that does not."""
    return [
        f"running: {describe_instance(one)}"
        for one in all_instances(question.settings)
        if one.running
    ]


def describe_instance(found: PidFile) -> str:
    """Put what is known of a PID file into a line."""
    if (record := found.running) is not None:
        return f"{record.url} (PID {record.process.pid}, {found.path})"
    return f"{found.path}: {found.problem}"


def remove_left_over(found: PidFile) -> None:
    """Remove a PID file that no gateway stands behind, and say so.

    Raises:
        CommandFailed: it cannot be removed, or may be something else that ``pid_file`` names by mistake.
    """
    usual = found.path.name.startswith(_STEM) and found.path.suffix == _PID_SUFFIX
    if found.record is None and found.problem != EMPTY and not usual:
        raise CommandFailed(
            f"{found.path} is there and no PID file of lcp-gateway: remove it, or choose another --pid-file"
        )
    try:
        found.path.unlink(missing_ok=True)
    except OSError as error:
        raise CommandFailed(
            f"{found.path}: {found.problem}, and it cannot be removed: {error.strerror}"
        ) from None
    kind = "another user's" if found.condition is Condition.FOREIGN else "a stale"
    report(f"removed {kind} PID file, {found.path}: {found.problem}")


@contextlib.contextmanager
def exclusive_access(pid_file: Path, settings: Settings) -> Iterator[None]:
    """Keep other commands from this gateway for the block.

    Raises:
        CommandFailed: one of them takes too long, or there can be no lock.
    """
    lock = pid_file.with_name(f"{pid_file.name}.lock")
    timeout_s = settings.start_timeout_s + settings.stop_timeout_s + _LOCK_MARGIN_S
    with contextlib.ExitStack() as stack:
        try:
            make_folder(lock.parent)
            waiting = "waiting for another command that starts or stops this gateway"
            stack.enter_context(locked(lock, timeout_s, lambda: report(waiting)))
        except LockTimeout:
            raise CommandFailed(
                "another command still starts or stops this gateway: try again later"
            ) from None
        except OSError as error:
            raise CommandFailed(f"{lock}: cannot be written: {error.strerror}") from None
        yield


_VARIABLE = "_LCP_GATEWAY_BACKGROUND"
"""Tells the gateway that ``start`` has started it. No setting, so that nobody finds it among them."""


def background_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """Give an environment in which a gateway knows that it runs in the background."""
    return {**environ, _VARIABLE: "1"}


def is_background() -> bool:
    """Tell whether this process was started by ``start``; it is told once, and its children are not."""
    return os.environ.pop(_VARIABLE, "") == "1"


@contextlib.contextmanager
def background_files(settings: Settings) -> Iterator[None]:
    """Look after the files of this process, which leads its standard output and error to its log already."""
    files = files_of(settings)
    try:
        with LogFile(files.log_file, max_bytes=settings.log_max_bytes, keep=settings.log_keep):
            yield
    finally:
        if (ourselves := find_process(os.getpid())) is not None:
            remove_pid_file(files.pid_file, ourselves)
