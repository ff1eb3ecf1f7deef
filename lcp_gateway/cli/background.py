"""A gateway in the background, from its own side: it rotates its log, and takes its PID file away when it ends."""

import contextlib
import os
from collections.abc import Iterator, Mapping

from lcp_gateway.cli.instances import files_of
from lcp_gateway.cli.pid_file import remove_pid_file
from lcp_gateway.cli.processes import find_process
from lcp_gateway.config import Settings
from lcp_gateway.telemetry.log_file import LogFile

_VARIABLE = "_LCP_GATEWAY_BACKGROUND"
"""Tells the gateway that ``start`` has started it. No setting, so that nobody finds it among them."""


def marked(environ: Mapping[str, str]) -> dict[str, str]:
    """Give an environment in which a gateway knows that it runs in the background."""
    return {**environ, _VARIABLE: "1"}


def is_background() -> bool:
    """Tell whether this process was started by ``start``; it is told once, and its children are not."""
    return os.environ.pop(_VARIABLE, "") == "1"


@contextlib.contextmanager
def living_in_background(settings: Settings) -> Iterator[None]:
    """Look after the files of this process, which leads its standard output and error to its log already."""
    files = files_of(settings)
    try:
        with LogFile(files.log_file, max_bytes=settings.log_max_bytes, keep=settings.log_keep):
            yield
    finally:
        if (ourselves := find_process(os.getpid())) is not None:
            remove_pid_file(files.pid_file, ourselves)
