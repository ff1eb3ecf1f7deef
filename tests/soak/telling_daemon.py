"""A daemon whose streams tell which request they are for: ``python -m tests.soak.telling_daemon ADDRESS``.

The bench's stand-in, but each event holds the text of its request's last message, and its own number.
"""

import asyncio
import json
import sys

import uvloop

from bench.http2_server import serving
from bench.standin import StandIn, Stream


def event(text, number):
    """Return one event of the stream for a request with ``text``."""
    choice = {"index": 0, "delta": {"content": f"{text} {number} "}, "finish_reason": None}
    return b"data: " + json.dumps({"object": "chat.completion.chunk", "choices": [choice]}).encode() + b"\n\n"


class TellingDaemon(StandIn):
    """Remembers each job's text until its stream is asked for."""

    def __init__(self):
        super().__init__(0.0)
        self._texts = {}

    def job_of(self, body):
        job_id = super().job_of(body)
        self._texts[job_id] = json.loads(body)["messages"][-1]["content"], json.loads(body)["max_tokens"]
        return job_id

    def stream_of(self, job_id):
        known = self._texts.pop(job_id, None)
        if known is None:
            # Quoted before it was killed: a daemon keeps nothing.
            return None
        text, chunks = known
        return Stream([event(text, number) for number in range(chunks - 1)])


async def serve(address):
    """Serve until it is killed."""
    async with serving(TellingDaemon(), address):
        await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
