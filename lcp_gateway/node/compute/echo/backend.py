"""The echo backend: composes a reply and gives it in the shape that the task asks for."""

from collections.abc import AsyncGenerator

from lcp_gateway.node.compute.base import IDENTITY, JSON_TYPE, STREAM_TYPE, Answer, Work
from lcp_gateway.node.compute.echo import chat, responses
from lcp_gateway.node.compute.echo.reply import compose
from lcp_gateway.node.compute.echo.tokens import paced
from lcp_gateway.node.tasks import TaskKind


class EchoBackend:
    """Needs nothing and keeps nothing."""

    async def start(self) -> tuple[str, ...]:
        """Give no models: the configuration alone names them."""
        return ()

    async def answer(self, work: Work) -> Answer:
        """Begin an answer at the work's pace; a whole one comes after the time that its tokens take."""
        task = work.task
        reply = compose(task)
        is_chat = task.kind is TaskKind.CHAT
        if task.stream:
            stream = chat.chunks(work, reply) if is_chat else responses.events(work, reply)
            return Answer(STREAM_TYPE, IDENTITY, stream)
        body = chat.completion(work, reply) if is_chat else responses.response(work, reply)
        return Answer(JSON_TYPE, IDENTITY, _whole(body, reply.tokens, work.tokens_per_second))

    async def close(self) -> None:
        """Nothing is open."""


async def _whole(
    body: bytes, tokens: tuple[str, ...], tokens_per_second: float
) -> AsyncGenerator[bytes, None]:
    if tokens_per_second > 0:
        async for _ in paced(tokens, tokens_per_second):
            pass
    yield body
