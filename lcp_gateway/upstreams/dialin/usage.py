"""What a node says that a request took, held against what its bytes can hold."""

from dataclasses import dataclass
from typing import Final

from lcp_gateway.adapters.usage import Usage, usage_of
from lcp_gateway.constants import BYTES_PER_TOKEN
from lcp_gateway.node_protocol.messages import End

TOLERANCE: Final = 3
"""How many times the gateway's own estimate a node's word may be."""
_SLACK_TOKENS: Final = 512
"""Templates around a prompt, and reasoning that is not shown, are tokens without bytes."""


@dataclass(frozen=True, slots=True)
class HeldUsage:
    """The usage that is charged; ``is_refuted`` says that the node's own word was not believed."""

    usage: Usage
    is_refuted: bool


def held_usage(end: End, usage_data: bytes, *, body_bytes: int, result_bytes: int) -> HeldUsage:
    """Return the usage that a result is charged by.

    The result's own ``usage`` counts before that of the end, since the client sees it. ``usage_data`` is the part of the result that holds it, ``result_bytes`` the
    size of its text. A number far beyond the estimate is replaced by the estimate.
    """
    estimate = Usage(-(-body_bytes // BYTES_PER_TOKEN), -(-result_bytes // BYTES_PER_TOKEN))
    stated = usage_of(usage_data)
    if stated is None and (end.input_tokens is not None or end.output_tokens is not None):
        stated = Usage(end.input_tokens or 0, end.output_tokens or 0)
    if stated is None:
        return HeldUsage(estimate, is_refuted=False)
    input_tokens, input_is_wrong = _held(stated.input_tokens, estimate.input_tokens)
    output_tokens, output_is_wrong = _held(stated.output_tokens, estimate.output_tokens)
    return HeldUsage(Usage(input_tokens, output_tokens), input_is_wrong or output_is_wrong)


def _held(stated: int, estimate: int) -> tuple[int, bool]:
    is_wrong = stated > estimate * TOLERANCE + _SLACK_TOKENS
    return (estimate if is_wrong else stated), is_wrong
