"""The price of a virtual node's work: the ceiling that is quoted, and the charge at the end."""

import math
from dataclasses import dataclass

from lcp_gateway.adapters.json_bytes import object_or_none
from lcp_gateway.adapters.usage import Usage, whole_number
from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.purchase.money import Msat
from lcp_gateway.purchase.order import OUTPUT_LIMITS, Task, TaskKind
from lcp_gateway.routing.catalog import PriceList

_PER_1K = 1_000
_MS_PER_MINUTE = 60_000
# Ordinary text has more than two bytes to a token in every tokenizer in use, and a prompt that is given as numbers has
# a digit and a comma to each. Text made of single symbols can have more tokens; the charge still stops at the ceiling.
_LEAST_BYTES_PER_TOKEN = 2
# 10,000 BTC: above every limit, so that the price of a wild max_tokens still fits the journal's 64 bits.
_MOST_MSAT = 10**15
_USUAL_TOKENS = 500
_USUAL_MS = 10_000


@dataclass(frozen=True, slots=True)
class NodePrice:
    """A node's price list, in msat; all parts add up.

    ``max_output_tokens`` is assumed for a request that sets no limit of its own.
    """

    per_request_msat: int = 0
    per_1k_input_msat: int = 0
    per_1k_output_msat: int = 0
    per_minute_msat: int = 0
    max_output_tokens: int = 4096

    @property
    def is_free(self) -> bool:
        """Whether all parts are 0."""
        return not (self.per_request_msat or self.per_1k_input_msat or self.per_1k_output_msat or self.per_minute_msat)

    def most_msat(self, task: Task, timeout_s: float) -> Msat:
        """Return the highest price of a task that may take ``timeout_s``, rounded up.

        Input tokens are estimated from the body's size, one for each two bytes: more than ordinary text has.
        """
        input_tokens = 0
        if self.per_1k_input_msat:
            input_tokens = -(-len(task.body) // _LEAST_BYTES_PER_TOKEN)
        output_tokens = self._most_output_tokens(task) if self.per_1k_output_msat else 0
        return self._sum(input_tokens, output_tokens, math.ceil(timeout_s * 1_000))

    def charge_msat(
        self, usage: Usage | None, *, body_bytes: int, result_bytes: int, elapsed_s: float, ceiling_msat: Msat
    ) -> Msat:
        """Return the charge, rounded up and never above the ceiling.

        Without ``usage`` the tokens are estimated from the bytes of the request and the result.
        """
        if usage is None:
            usage = Usage(-(-body_bytes // BYTES_PER_TOKEN), -(-result_bytes // BYTES_PER_TOKEN))
        elapsed_ms = math.ceil(max(elapsed_s, 0.0) * 1_000)
        return min(self._sum(usage.input_tokens, usage.output_tokens, elapsed_ms), ceiling_msat)

    def list_price_msat(self) -> Msat:
        """Return the price of an ordinary request: 500 tokens in, 500 tokens out, 10 seconds."""
        return self._sum(_USUAL_TOKENS, _USUAL_TOKENS, _USUAL_MS)

    def by_size(self, timeout_s: float) -> PriceList:
        """Return ``most_msat`` as a function of a chat's size, for comparing providers before asking for a quote."""
        return PriceList(
            per_request=self.per_request_msat + timeout_s * 1_000 * self.per_minute_msat / _MS_PER_MINUTE,
            per_input_byte=self.per_1k_input_msat / _PER_1K / _LEAST_BYTES_PER_TOKEN,
            per_output_token=self.per_1k_output_msat / _PER_1K,
            usual_output_tokens=self.max_output_tokens,
        )

    def _sum(self, input_tokens: int, output_tokens: int, time_ms: int) -> Msat:
        """Add up in whole numbers, in parts of 1/60,000 msat, which both kinds of price divide into."""
        tokens = input_tokens * self.per_1k_input_msat + output_tokens * self.per_1k_output_msat
        parts = tokens * (_MS_PER_MINUTE // _PER_1K) + time_ms * self.per_minute_msat
        return Msat(min(self.per_request_msat - (-parts // _MS_PER_MINUTE), _MOST_MSAT))

    def _most_output_tokens(self, task: Task) -> int:
        if task.kind is TaskKind.EMBEDDINGS:
            return 0
        document = object_or_none(task.body) or {}
        limits = [limit for name in OUTPUT_LIMITS if (limit := _count(document.get(name)))]
        each = max(limits, default=self.max_output_tokens)
        if task.kind is TaskKind.RESPONSES:
            return each
        answers = max(_count(document.get("n")), _count(document.get("best_of")), 1)
        prompts = _prompts(document.get("prompt")) if task.kind is TaskKind.COMPLETIONS else 1
        return each * answers * prompts


def _count(value: object) -> int:
    """Return a number that may stand for a count, else 0."""
    return max(whole_number(value) or 0, 0)


def _prompts(prompt: object) -> int:
    """Count the prompts of a completions request: a list of strings or of lists has several, one of numbers is one."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        return len(prompt)
    return 1
