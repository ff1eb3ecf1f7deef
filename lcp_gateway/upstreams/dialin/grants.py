"""Who may dial in, and on what terms: the operator's own nodes, and those of accounts."""

import hashlib
import hmac
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from lcp_gateway.upstreams.openai.price import NodePrice

_OWNER_CHARS: Final = 6


class NotAdmitted(Exception):
    """A node may not dial in; ``reason`` is a word for its goodbye."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True, slots=True)
class NodeTerms:
    """The terms on which a node is used.

    ``node_id`` is its name in the catalog. ``models`` are those that it may offer, all where it is empty. ``price`` holds in
    place of what the node asks, None where the node sets its own. ``concurrent`` bounds what runs on it at once; 0 leaves it to
    the node. ``account_id`` is its owner, None where it is the operator's; ``commission_ppm`` of each price stay with the operator.
    """

    node_id: str
    account_id: str | None = None
    commission_ppm: int = 0
    models: frozenset[str] = frozenset()
    price: NodePrice | None = None
    owned_by: str = ""
    timeout_s: float = 120.0
    concurrent: int = 0


class Grant(Protocol):
    """The right of one connection to be here."""

    async def terms(self, name: str) -> NodeTerms:
        """Return the terms for the node that calls itself ``name``.

        Raises:
            NotAdmitted: it may not dial in.
        """
        ...

    def holds(self) -> bool:
        """Whether the token is still good, and the terms are still the same."""
        ...


class NodeTokens(Protocol):
    """Knows the tokens of nodes."""

    def find(self, token: str) -> Grant | None:
        """Return the grant of a token, None for one that is not known; in the same time for all."""
        ...


@dataclass(frozen=True, slots=True)
class OperatorNode:
    """A node of the operator's own, as the settings describe it."""

    token_sha256: bytes
    terms: NodeTerms


class OperatorTokens:
    """The tokens of the operator's own nodes; a reload exchanges them."""

    def __init__(self, nodes: Iterable[OperatorNode] = ()) -> None:
        self._nodes = tuple(nodes)

    def use(self, nodes: Iterable[OperatorNode]) -> None:
        """Know these nodes from now on; a grant whose node is gone or has changed no longer holds."""
        self._nodes = tuple(nodes)

    def find(self, token: str) -> Grant | None:
        """Return the grant of a token, in the same time for all."""
        presented = token_digest(token)
        found = None
        for node in self._nodes:
            if hmac.compare_digest(node.token_sha256, presented):
                found = node
        return None if found is None else _OperatorGrant(found, lambda: found in self._nodes)


class SeveralTokens:
    """The tokens of several kinds of owner, asked in turn."""

    def __init__(self, *kinds: NodeTokens) -> None:
        self._kinds = kinds

    def find(self, token: str) -> Grant | None:
        """Return the grant of the first that knows the token."""
        return next((grant for kind in self._kinds if (grant := kind.find(token)) is not None), None)


class _OperatorGrant:
    def __init__(self, node: OperatorNode, is_known: Callable[[], bool]) -> None:
        self._node = node
        self._is_known = is_known

    async def terms(self, name: str) -> NodeTerms:  # noqa: ARG002 - the settings name the node
        return self._node.terms

    def holds(self) -> bool:
        return self._is_known()


def token_digest(token: str) -> bytes:
    """Return the hash by which a token is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def account_node_id(account_id: str, name: str) -> str:
    """Return the id of an account's node: its name, and a mark of the account, so that no account can take another's name."""
    return f"{name}.{hashlib.sha256(account_id.encode()).hexdigest()[:_OWNER_CHARS]}"
