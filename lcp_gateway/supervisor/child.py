"""One worker's process, as the supervisor sees it."""

import asyncio
import itertools
import os
import signal
import socket
import sys
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Self

from lcp_gateway.config import Loaded
from lcp_gateway.supervisor.channel import Channel, ChannelClosed, Handler, QuestionFailed
from lcp_gateway.supervisor.messages import Boot, Message, Ready, ReloadResult
from lcp_gateway.telemetry.merged_metrics import Snapshot

_MODULE = "lcp_gateway.cli.serve.worker"
_numbers = itertools.count(1)


class Child:
    """A worker that was started, with the settings ``loaded``. ``number`` is that of its process in this run, which no other gets."""

    def __init__(self, boot: Boot, process: Process, channel: Channel) -> None:
        self.number = next(_numbers)
        self.place = boot.place
        self.loaded = boot.loaded
        self.process = process
        self.is_ready = False
        self._channel = channel
        self._reading = asyncio.create_task(channel.run(), name=f"worker-{boot.place}")

    @classmethod
    async def start(
        cls,
        boot: Boot,
        environ: Mapping[str, str],
        on_ready: Callable[["Child", Ready], None],
        answers: dict[str, Handler],
    ) -> Self:
        """Start a worker; ``on_ready`` is called once it serves, ``answers`` are those to its questions.

        Raises:
            OSError: no process can be started.
        """
        ours, theirs = socket.socketpair()
        handlers = dict(answers)
        try:
            inherited = [fd for fds in (*boot.sockets, *boot.metrics_sockets) for fd in fds]
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", _MODULE, str(theirs.fileno())),
                stdin=DEVNULL,
                pass_fds=(*inherited, boot.job_counts, theirs.fileno()),
                env=environ,
                # Ctrl-C in a terminal reaches a whole process group: the supervisor passes it on.
                start_new_session=True,
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        channel = await Channel.open(ours, handlers)
        child = cls(boot, process, channel)

        async def ready(content: Ready) -> None:
            child.is_ready = True
            on_ready(child, content)

        handlers[Message.READY] = ready
        channel.tell(Message.BOOT, boot)
        return child

    @property
    def runs(self) -> bool:
        """Whether its process has not ended."""
        return self.process.returncode is None

    async def wait(self) -> int:
        """Wait for its end, and return its exit code: a negative one is the signal that ended it."""
        code = await self.process.wait()
        self.is_ready = False
        self._channel.close()
        await asyncio.wait([self._reading])
        return code

    def tell(self, kind: Message, content: object = None) -> None:
        """Send it a message."""
        self._channel.tell(kind, content)

    async def metrics(self, timeout_s: float) -> Snapshot | None:
        """Return its metrics; None where it does not answer in time.

        Raises:
            QuestionFailed: it answers that it cannot.
        """
        snapshot: Snapshot | None = await self._ask(Message.SNAPSHOT, None, timeout_s)
        return snapshot

    async def reload(self, loaded: Loaded, timeout_s: float) -> ReloadResult | None:
        """Have it take settings; None where it does not answer in time, or that it cannot."""
        try:
            result: ReloadResult | None = await self._ask(Message.RELOAD, loaded, timeout_s)
        except QuestionFailed:
            return None
        return result

    def kill(self) -> None:
        """End it at once."""
        if self.runs:
            with suppress(ProcessLookupError):
                os.kill(self.process.pid, signal.SIGKILL)

    async def _ask(self, kind: Message, content: object, timeout_s: float) -> Any:
        try:
            return await self._channel.ask(kind, content, timeout_s=timeout_s)
        except (ChannelClosed, TimeoutError):
            return None
