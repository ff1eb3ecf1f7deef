"""Buying where several gateways share what they know: one buys, and whoever asks another one gets what came of it."""

from collections.abc import Awaitable, Callable

from lcp_gateway.purchase.answers import Answer
from lcp_gateway.purchase.memory import AnswerMemory, KeyReused, Repeat
from lcp_gateway.purchase.shared import Bought, Claim, SharedAnswers


class Sharing:
    """One order that this gateway buys, unless another one does or did."""

    def __init__(
        self, shared: SharedAnswers, memory: AnswerMemory, answer: Answer, repeat: Repeat
    ) -> None:
        self._shared = shared
        self._memory = memory
        self._answer = answer
        self._repeat = repeat
        self._claim: Claim | None = None
        self.bought_elsewhere = False

    async def obtain(self, buy: Callable[[Claim], Awaitable[None]]) -> None:
        """Buy with a claim, or give the answer what came of the order elsewhere. ``ended`` has to follow.

        Raises:
            Exception: as ``SharedAnswers.claim`` and ``buy``.
        """
        try:
            found = await self._shared.claim(self._answer.order, self._repeat)
        except KeyReused:
            self._memory.take_back(self._answer, self._repeat)
            raise
        if isinstance(found, Bought):
            self.bought_elsewhere = True
            found.give(self._answer)
            return
        self._claim = found
        await buy(found)

    async def ended(self) -> None:
        """Let the others have what came of it."""
        if self._claim is not None:
            await self._claim.ended(self._answer)
