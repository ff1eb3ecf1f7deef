"""One worker's process: started by the supervisor with the number of its end of their channel as the only argument."""

import contextlib
import signal
import socket
import sys

from lcp_gateway.supervisor.channel import ChannelClosed, receive_first
from lcp_gateway.supervisor.link import WorkerLink
from lcp_gateway.supervisor.messages import Boot, Message

_CHECK_LOG_EVERY_S = 1.0


def main() -> int:
    """Serve until the supervisor says to stop, or is gone."""
    # The supervisor passes on what a signal means.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    end = socket.socket(fileno=int(sys.argv[1]))
    try:
        boot = receive_first(end)
    except ChannelClosed:
        return 1
    link = WorkerLink(boot, end)
    link.handle(Message.LOG_MOVED, _nothing)
    with contextlib.ExitStack() as stack:
        if boot.log_file is not None:
            stack.enter_context(_followed_log(boot, link))
        from lcp_gateway.cli.serve.serve import load_structlog_without_rich  # noqa: PLC0415 - loads typer

        load_structlog_without_rich()
        from lcp_gateway.telemetry.log_output import queued_standard_streams  # noqa: PLC0415 - loads structlog

        streams = stack.enter_context(queued_standard_streams())
        from lcp_gateway.app import run  # noqa: PLC0415 - loads the whole gateway

        return run(
            boot.loaded.settings,
            banner=(),
            # The supervisor has logged them, and reads the settings.
            loaded_warnings=(),
            read_settings=lambda: boot.loaded,
            lost_log_lines=streams.lost_lines,
            link=link,
        )


async def _nothing(_content: object) -> None:
    """There is no file."""


def _followed_log(boot: Boot, link: WorkerLink) -> contextlib.AbstractContextManager[object]:
    """Write to the file that has the log's name, which the supervisor rotates."""
    from lcp_gateway.telemetry.log_output import LogFile  # noqa: PLC0415 - in the background only

    assert boot.log_file is not None  # noqa: S101 - the caller looked
    log = LogFile(boot.log_file, max_bytes=0, keep=0, interval_s=_CHECK_LOG_EVERY_S)

    async def moved(_content: object) -> None:
        with contextlib.suppress(OSError):
            log.rotate_if_due()

    link.handle(Message.LOG_MOVED, moved)
    return log


if __name__ == "__main__":
    sys.exit(main())
