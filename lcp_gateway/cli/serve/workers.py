"""``lcp-gateway serve`` with several workers: the process that the service manager, ``stop`` and ``reload`` know."""

import asyncio
import contextlib
import dataclasses
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.embedded import MAX_SOCKET_BYTES, banner_of, children_for
from lcp_gateway.cli.serve.node_process import FOLDER_PREFIX
from lcp_gateway.cli.serve.serve import load_structlog_without_rich, log_settings, settings_reader
from lcp_gateway.cli.service.instances import background_files, files_of, make_folder, run_folder
from lcp_gateway.config import Loaded, Settings, spending_warnings, worker_count

_SUFFIX = ".workers"
_LONGEST_NAME = "/redis.sock"


def serve_with_workers(loaded: Loaded, flags: Mapping[str, object], config: Path | None, *, background: bool) -> int:
    """Run the gateway until it is stopped; return the exit code."""
    missing = [name for name in ("redis", "cryptography") if importlib.util.find_spec(name) is None]
    if missing:
        raise CommandFailed(
            "several workers need the extra: pip install 'lcp-gateway[redis]', or use workers = 1",
            exit_code=USAGE_ERROR,
        )
    from lcp_gateway.supervisor.private_redis import RedisMissing, find_server  # noqa: PLC0415 - needed here only

    settings = loaded.settings
    try:
        server = "" if settings.redis_url else find_server()
    except RedisMissing as error:
        raise CommandFailed(str(error), exit_code=USAGE_ERROR) from None
    with contextlib.ExitStack() as stack:
        moved = _Later()
        if background:
            stack.enter_context(background_files(settings, moved))
        load_structlog_without_rich()
        from lcp_gateway.telemetry.log_output import queued_standard_streams  # noqa: PLC0415 - loads structlog
        from lcp_gateway.telemetry.logs import configure_logging, get_logger  # noqa: PLC0415 - as above

        # Before the node is started, which writes to the same standard error.
        stack.enter_context(queued_standard_streams())
        using_children = stack.enter_context(children_for(settings))
        settings = using_children(settings)
        configure_logging("debug" if settings.verbose else settings.log_level, settings.log_format)
        log_settings(loaded)
        log = get_logger("supervisor")
        for warning in (*loaded.warnings, *spending_warnings(settings)):
            log.warning(warning)

        from lcp_gateway.supervisor.listening import CannotListen  # noqa: PLC0415 - after structlog was loaded
        from lcp_gateway.supervisor.supervisor import Supervisor  # noqa: PLC0415 - as above
        from lcp_gateway.supervisor.systemd import Notifier  # noqa: PLC0415 - as above

        notifier = Notifier.from_environ(os.environ)
        try:
            supervisor = Supervisor(
                dataclasses.replace(loaded, settings=settings),
                worker_count(settings),
                read_settings=settings_reader(using_children, flags, config),
                banner=banner_of(settings),
                folder=stack.enter_context(_private_folder(settings)),
                log=log,
                environ=os.environ,
                log_file=files_of(settings).log_file if background else None,
                redis_server=server,
            )
            moved.call = supervisor.log_was_moved
            return asyncio.run(supervisor.run(notifier))
        except (CannotListen, RedisMissing, OSError) as error:
            sys.stderr.write(f"lcp-gateway: {error}\n")
            return 1
        finally:
            # A signal that comes while the node is ended must not end this process before.
            signal.signal(signal.SIGHUP, signal.SIG_IGN)


class _Later:
    """A callback whose target is known later."""

    def __init__(self) -> None:
        self.call: Callable[[], None] = lambda: None

    def __call__(self) -> None:
        self.call()


@contextlib.contextmanager
def _private_folder(settings: Settings) -> Iterator[Path]:
    """Yield a folder for sockets that only this user can enter: beside the PID files, unless a socket's path is too long there.

    Raises:
        OSError: it cannot be made.
    """
    name = f"{files_of(settings).pid_file.stem}-{os.getpid()}{_SUFFIX}"
    folder = run_folder(settings) / name
    if len(os.fsencode(folder)) + len(_LONGEST_NAME) > MAX_SOCKET_BYTES:
        folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    else:
        make_folder(folder.parent)
        _remove_left_over(folder.parent)
        folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _remove_left_over(parent: Path) -> None:
    """Remove the folders of gateways that were killed: a folder is named after its process."""
    for folder in parent.glob(f"*{_SUFFIX}"):
        pid = folder.name.removesuffix(_SUFFIX).rpartition("-")[2]
        if pid.isdigit() and not _exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True
