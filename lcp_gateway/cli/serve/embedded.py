"""The embedded node: a child process of the gateway that is started early, restarted when it dies, and ended with it."""

import contextlib
import dataclasses
import functools
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self

from lcp_gateway.cli.output import USAGE_ERROR, CommandFailed
from lcp_gateway.cli.serve.child import RESTARTS, ChildProcess, RestartPolicy
from lcp_gateway.cli.serve.node_process import FOLDER_PREFIX, KEY_VARIABLE, NodeOptions
from lcp_gateway.config import Settings, local_models

if TYPE_CHECKING:
    from lcp_gateway.cli.serve.local_models import LocalModels

MAX_SOCKET_BYTES = 103
"""The longest path of a socket on any system, without the byte that ends it."""
_DAEMON_SETTINGS = (
    *("lcpd_grpc_addr", "lcpd_tls", "lcpd_tls_ca", "lcpd_tls_cert", "lcpd_tls_key"),
    *("lcpd_tls_server_name", "lcpd_metadata"),
)


@contextlib.contextmanager
def daemon_for(settings: Settings) -> Iterator[Settings]:
    """Yield settings whose daemon runs for the block: the embedded node's address where that is asked for.

    Raises:
        CommandFailed: the daemon is a node inside ``serve``, which no other process reaches.
    """
    if settings.lnd:
        raise CommandFailed(
            "lnd: the node runs inside `lcp-gateway serve`, and this command cannot ask it: run `lcp-gateway node --lnd` by itself "
            "and name it in lcpd_grpc_addr",
            exit_code=USAGE_ERROR,
        )
    with children_for(settings, with_models=False) as using_children:
        yield using_children(settings)


@contextlib.contextmanager
def children_for(settings: Settings, *, with_models: bool = True) -> Iterator[Callable[[Settings], Settings]]:
    """Run for the block what the settings ask for: the process of local models, the embedded node.

    Yields a function that returns settings which use what runs here: also those that are read later.
    """
    check_node(settings)
    needs_models = with_models and bool(settings.local_model or local_models(settings))
    if not settings.embedded and not needs_models:
        yield lambda read: read
        return
    handler = _SigtermHandler()
    before = signal.signal(signal.SIGTERM, handler)
    changes: list[Callable[[Settings], Settings]] = []
    try:
        with contextlib.ExitStack() as stack:
            if needs_models:
                models = stack.enter_context(_local_models(settings))
                changes.append(models.used_by)
                settings = models.used_by(settings)
            if settings.embedded:
                node = stack.enter_context(EmbeddedNode(node_options(settings), tell=_log))
                daemon = {**settings_of_daemon(Settings()), "lcpd_grpc_addr": node.address}
                changes.append(lambda read: read.model_copy(update=daemon))
            stack.enter_context(handler)
            yield lambda read: functools.reduce(lambda changed, change: change(changed), changes, read)
    finally:
        signal.signal(signal.SIGTERM, before)


def settings_of_daemon(settings: Settings) -> dict[str, Any]:
    """Return the settings that say where the daemon is: with an embedded node they are its own, not the configured ones."""
    return {name: getattr(settings, name) for name in _DAEMON_SETTINGS}


def node_options(settings: Settings, *, listen: str = "", protocol_version: int = 0) -> NodeOptions:
    """Return the settings that describe the node; ``listen`` is used where they name no address."""
    return NodeOptions(
        listen=settings.node_listen or listen,
        backend=settings.node_backend,
        backend_api_key=settings.node_backend_api_key,
        peers_file=str(settings.node_peers_file or ""),
        faults=settings.node_faults,
        events_file=str(settings.node_events_file or ""),
        tokens_per_second=settings.node_tokens_per_second,
        protocol_version=protocol_version,
    )


def banner_of(settings: Settings) -> Sequence[str]:
    """Return the line that says that no real money moves; none without an embedded node."""
    if not settings.embedded:
        return ()
    is_echo = settings.node_backend == "echo" and not settings.local_model
    answers = " and its answers are a stand-in" if is_echo else ""
    return (f"embedded node: its Lightning is simulated{answers}. No real money moves.",)


def check_node(settings: Settings) -> None:
    """Check the description of an embedded node here, where an error is one line and not a daemon that does not answer."""
    if not settings.embedded:
        return
    from lcp_gateway.node.toml import ConfigError  # noqa: PLC0415 - needed for an embedded node only

    try:
        node_options(settings).node_config()
    except ConfigError as error:
        raise CommandFailed(f"node: {error}", exit_code=USAGE_ERROR) from None


class EmbeddedNode:
    """Runs a node in a child process while the ``with`` block lasts. ``address`` is the target that a gRPC client dials."""

    def __init__(
        self, options: NodeOptions, *, tell: Callable[[str], None], restarts: RestartPolicy = RESTARTS
    ) -> None:
        self._folder: Path | None = None
        if not options.listen:
            self._folder = _private_folder()
            options = dataclasses.replace(options, listen=f"unix:{self._folder / 'node.sock'}")
        self._listen = options.listen
        self._child = ChildProcess(
            "embedded node",
            [sys.executable, "-m", "lcp_gateway.cli.serve.node_process", options.to_json()],
            tell=tell,
            secrets={KEY_VARIABLE: options.backend_api_key},
            prepare=self._make_folder,
            restarts=restarts,
        )

    @property
    def address(self) -> str:
        """Where the node is reached, as a gRPC target."""
        return f"127.0.0.1{self._listen}" if self._listen.startswith(":") else self._listen

    @property
    def pid(self) -> int | None:
        """The child's process id, while there is one."""
        return self._child.pid

    def __enter__(self) -> Self:
        """Start the child; it becomes ready while the caller continues."""
        self._child.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the child and remove its socket."""
        self._child.__exit__(kind, error, trace)
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)

    def _make_folder(self) -> None:
        # A node that ended in good order removed it.
        if self._folder is not None:
            self._folder.mkdir(mode=0o700, exist_ok=True)


def _private_folder() -> Path:
    """Make a folder for a socket: where temporary files go, unless that path is longer than a socket's may be."""
    folder = Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX))
    if len(str(folder / "node.sock").encode()) <= MAX_SOCKET_BYTES:
        return folder
    folder.rmdir()
    return Path(tempfile.mkdtemp(prefix=FOLDER_PREFIX, dir="/tmp"))


class _SigtermHandler:
    """Handles SIGTERM before the gateway's own handlers are set: it ends the ``with`` block, never the code around it.

    A signal while the node is being started or ended is delayed, so that no process and no socket is left behind.
    """

    def __init__(self) -> None:
        self._inside = False
        self._received = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self._received = number
        if self._inside:
            raise SystemExit(128 + number)

    def __enter__(self) -> None:
        self._inside = True
        if self._received:
            raise SystemExit(128 + self._received)

    def __exit__(self, *_error: object) -> None:
        self._inside = False


def _log(message: str) -> None:
    from lcp_gateway.telemetry.logs import get_logger  # noqa: PLC0415 - needed only when a node has died

    get_logger("embedded").warning(message)


def _local_models(settings: Settings) -> "LocalModels":
    # Few gateways have models of their own.
    from lcp_gateway.cli.serve.local_models import LocalModels, check_local_models, local_model_options  # noqa: PLC0415

    options = local_model_options(settings)
    check_local_models(options)
    return LocalModels(options, tell=_log)
