"""Runs `lcp-gateway node` whose answers wait after their first token while the file named by ``GATE`` does not exist.

Where ``GATED_WORD`` is set, only answers to prompts with this word wait.
"""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lcp_gateway.cli import main
from lcp_gateway.node.compute import echo, echo_reply
from lcp_gateway.node.lcp.buying_events import PeerTimeouts
from lcp_gateway.node.runtime.bounds import Delays
from lcp_gateway.node.runtime.node import LcpNode
from tests.support.journaled import TestedNode, money_node

GATE = "TEST_NODE_GATE"
GATED_WORD = "TEST_NODE_GATED_WORD"
_LOOK_EVERY_S = 0.05


@contextmanager
def gated_node(
    folder: Path, *, toml: str = "", faults: bool = False, word: str = ""
) -> Iterator[tuple[TestedNode, Path]]:
    """Run a node, and return it with its file: what waits goes on when it is made, and new answers wait once it is removed."""
    gate = folder / "gate"
    variables = {GATE: str(gate), GATED_WORD: word}
    with money_node(folder, toml=toml, faults=faults, module=__name__, **variables) as node:
        yield node, gate


class _Gate:
    """The file, which one task looks for while answers wait, however many they are."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._opening: asyncio.Task[None] | None = None

    async def opened(self) -> None:
        """Wait until the file exists."""
        if self._file.exists():
            return
        if self._opening is None or self._opening.done():
            self._opening = asyncio.create_task(self._look())
        await asyncio.shield(self._opening)

    async def _look(self) -> None:
        while not await asyncio.to_thread(self._file.exists):
            await asyncio.sleep(_LOOK_EVERY_S)


def _hold_answers(gate: _Gate, word: str) -> None:
    async def gated(tokens: Sequence[str], tokens_per_second: float) -> AsyncIterator[str]:
        waits = word in "".join(tokens)
        async for token in echo_reply.paced(tokens, tokens_per_second):
            yield token
            if waits:
                await gate.opened()
                waits = False

    echo.paced = gated


def _be_patient() -> None:
    """Have the node that buys wait for what is held: it would end a job whose seller sends nothing for a minute."""
    LcpNode.__init__.__kwdefaults__["delays"] = Delays(timeouts=PeerTimeouts(idle_s=600))


if __name__ == "__main__":
    _be_patient()
    _hold_answers(_Gate(Path(os.environ[GATE])), os.environ[GATED_WORD])
    sys.exit(main())
