"""The channel between the supervisor and one worker: questions with answers, and messages without, both ways.

Both ends are this program, started by the same user over a socket pair that no other process has, so the messages are
pickled: settings, with their secrets, need no form of their own.
"""

import asyncio
import pickle
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Final

_LENGTH_BYTES: Final = 4
_TELL, _ASK, _ANSWER, _FAILURE = range(4)

Handler = Callable[[Any], Awaitable[Any]]
"""Takes the content of a message; its result is the answer to a question."""


def receive_first(end: socket.socket) -> Any:
    """Return the content of the first message, before there is an event loop.

    Raises:
        ChannelClosed: the other end is gone.
    """

    def exactly(count: int) -> bytes:
        data = b""
        while len(data) < count:
            more = end.recv(count - len(data))
            if not more:
                raise ChannelClosed
            data += more
        return data

    return pickle.loads(exactly(int.from_bytes(exactly(_LENGTH_BYTES))))[-1]  # noqa: S301 - from our own process


class ChannelClosed(Exception):
    """The other end is gone."""


class QuestionFailed(Exception):
    """The other end could not answer; the message is the type of its error."""


class Channel:
    """One end of a channel. ``handlers`` are by the kind of message; each message is handled in a task of its own."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handlers: dict[str, Handler]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._handlers = handlers
        self._questions: dict[int, asyncio.Future[Any]] = {}
        self._asked = 0
        self._handling: set[asyncio.Task[None]] = set()

    @classmethod
    async def open(cls, end: socket.socket, handlers: dict[str, Handler]) -> "Channel":
        """Use one end of a socket pair."""
        reader, writer = await asyncio.open_connection(sock=end)
        return cls(reader, writer, handlers)

    async def run(self) -> None:
        """Read messages until the other end is gone."""
        with suppress(asyncio.IncompleteReadError, OSError):
            while True:
                length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES))
                form, number, kind, content = pickle.loads(await self._reader.readexactly(length))  # noqa: S301 - from our own process
                self._take(form, number, kind, content)
        self.close()

    def tell(self, kind: str, content: object = None) -> None:
        """Send a message; one that can no longer arrive is dropped."""
        self._send(_TELL, 0, kind, content)

    async def ask(self, kind: str, content: object = None, *, timeout_s: float) -> Any:
        """Ask the other end.

        Raises:
            ChannelClosed: it is gone.
            QuestionFailed: it could not answer.
            TimeoutError: it did not answer in time.
        """
        if self._writer.is_closing():
            raise ChannelClosed
        self._asked += 1
        number = self._asked
        answer = self._questions[number] = asyncio.get_running_loop().create_future()
        self._send(_ASK, number, kind, content)
        try:
            async with asyncio.timeout(timeout_s):
                return await answer
        finally:
            self._questions.pop(number, None)

    def close(self) -> None:
        """Close this end; questions that wait end with ``ChannelClosed``."""
        self._writer.close()
        for waiting in self._questions.values():
            if not waiting.done():
                waiting.set_exception(ChannelClosed())

    def _send(self, form: int, number: int, kind: str, content: object) -> None:
        if self._writer.is_closing():
            return
        data = pickle.dumps((form, number, kind, content))
        self._writer.write(len(data).to_bytes(_LENGTH_BYTES) + data)

    def _take(self, form: int, number: int, kind: str, content: Any) -> None:
        if form in {_ANSWER, _FAILURE}:
            waiting = self._questions.get(number)
            if waiting is not None and not waiting.done():
                if form == _ANSWER:
                    waiting.set_result(content)
                else:
                    waiting.set_exception(QuestionFailed(content))
            return
        # A task of its own, since an answer may take long and others must not wait for it.
        task = asyncio.create_task(self._handle(form, number, kind, content))
        self._handling.add(task)
        task.add_done_callback(self._handling.discard)

    async def _handle(self, form: int, number: int, kind: str, content: Any) -> None:
        try:
            answer = await self._handlers[kind](content)
        except Exception as error:  # noqa: BLE001 - the other end gets it
            if form == _ASK:
                self._send(_FAILURE, number, "", type(error).__name__)
            else:
                asyncio.get_running_loop().call_exception_handler(
                    {"message": f"a message could not be handled: {kind}", "exception": error}
                )
        else:
            if form == _ASK:
                self._send(_ANSWER, number, "", answer)
