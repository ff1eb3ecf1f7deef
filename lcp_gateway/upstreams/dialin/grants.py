"""Which nodes may dial in, and on what terms: the operator's own, and those of accounts."""

import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from lcp_gateway.accounts.callers import Caller
from lcp_gateway.accounts.limits.addresses import AddressLimits
from lcp_gateway.accounts.models import AccountError
from lcp_gateway.accounts.nodes import NodeRecord, NodeTermsCache
from lcp_gateway.upstreams.openai.price import NodePrice

_OWNER_CHARS: Final = 6
_NODE_SCOPE: Final = "node"

MOST_HELLOS: Final = 300
"""How often the nodes of one account may say hello within a minute: each hello is written to the database that purchases are
written to. As many may come at once, so that a fleet is back soon after the gateway has restarted."""


class NotAdmitted(Exception):
    """A node may not dial in; ``reason`` is a word for its goodbye. ``is_final``: another try by itself is of no use."""

    def __init__(self, reason: str, message: str, *, is_final: bool = True) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.is_final = is_final


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

    @property
    def account_id(self) -> str | None:
        """The owner of the node; None for the operator."""
        ...

    async def terms(self, name: str) -> NodeTerms:
        """Return the terms for the node that calls itself ``name``.

        Raises:
            NotAdmitted: it may not dial in.
        """
        ...

    def holds(self) -> bool:
        """Whether the token is known to be good, and the terms are still the same: else nothing new is sent."""
        ...

    def is_revoked(self) -> bool:
        """Whether the token is known not to be good any more, or the terms have changed: the connection ends."""
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
    account_id: str | None = None

    def __init__(self, node: OperatorNode, is_known: Callable[[], bool]) -> None:
        self._node = node
        self._is_known = is_known

    async def terms(self, name: str) -> NodeTerms:  # noqa: ARG002 - the settings name the node
        return self._node.terms

    def holds(self) -> bool:
        return self._is_known()

    def is_revoked(self) -> bool:
        return not self._is_known()


@dataclass(frozen=True, slots=True)
class OwnerTerms:
    """What the store says of an account's node. ``frozen`` nodes may not dial in."""

    commission_ppm: int = 0
    frozen: bool = False


class StoredOwners:
    """The accounts' nodes in the store."""

    def __init__(self, nodes: NodeTermsCache) -> None:
        self._nodes = nodes

    async def terms(self, account_id: str, key_id: str, name: str, node_id: str) -> OwnerTerms:
        """Record that a node dials in, and return its terms.

        Raises:
            NotAdmitted: its account is gone, or another account has a node of this id.
        """
        try:
            return self._terms(await self._nodes.connect(node_id, account_id, key_id, name))
        except AccountError as error:
            raise NotAdmitted("account", str(error)) from error

    def current(self, node_id: str) -> OwnerTerms | None:
        """Return the terms of a node as they are now, from memory; None where they are not known."""
        record = self._nodes.find(node_id)
        return None if record is None else self._terms(record)

    def _terms(self, record: NodeRecord) -> OwnerTerms:
        return OwnerTerms(commission_ppm=self._nodes.commission_ppm(record), frozen=record.is_frozen)


@dataclass(frozen=True, slots=True)
class AccountNodes:
    """The nodes of accounts: ``find_caller`` looks a key up in memory.

    It and ``owners`` raise one of ``stale`` while what they know is not known to be so.
    """

    find_caller: Callable[[str], Caller | None]
    owners: StoredOwners
    stale: tuple[type[Exception], ...] = ()


@dataclass(frozen=True, slots=True)
class AccountRules:
    """Whether nodes of accounts may dial in, which models they may offer (all where it is empty), and how long a request may take."""

    is_on: bool = False
    models: frozenset[str] = frozenset()
    timeout_s: float = 120.0


class AccountTokens:
    """Keys of accounts with the scope ``node``."""

    def __init__(
        self, accounts: AccountNodes | None, rules: AccountRules, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._accounts = accounts
        self._rules = rules
        self._hellos = AddressLimits(clock=clock)

    def use(self, rules: AccountRules) -> None:
        """Apply other rules from now on; a grant whose terms have changed by them no longer holds."""
        self._rules = rules

    def find(self, token: str) -> Grant | None:
        """Return the grant of a key."""
        caller = self.caller(token)
        if caller is None or self._accounts is None:
            return None
        return _AccountGrant(self, self._accounts, token, caller)

    def caller(self, token: str) -> Caller | None:
        """Return the owner of a key that is good for nodes."""
        if self._accounts is None or not self._rules.is_on or not token:
            return None
        caller = self._accounts.find_caller(token)
        if caller is None or caller.account_id is None or _NODE_SCOPE not in set(caller.rules.scopes):
            return None
        return caller

    def count_hello(self, account_id: str) -> None:
        """Count a hello of an account's nodes.

        Raises:
            NotAdmitted: they say hello too often.
        """
        if self._hellos.take(account_id, MOST_HELLOS):
            message = (
                f"the nodes of this account said hello more than {MOST_HELLOS} times within a minute: dial again later"
            )
            raise NotAdmitted("too_many_hellos", message, is_final=False)

    def terms(self, account_id: str, name: str, owner: OwnerTerms) -> NodeTerms:
        """Return the terms of an account's node."""
        return NodeTerms(
            node_id=account_node_id(account_id, name),
            account_id=account_id,
            commission_ppm=owner.commission_ppm,
            models=self._rules.models,
            owned_by=name,
            timeout_s=self._rules.timeout_s,
        )


class _AccountGrant:
    def __init__(self, tokens: AccountTokens, accounts: AccountNodes, token: str, caller: Caller) -> None:
        self._tokens = tokens
        self._accounts = accounts
        self._token = token
        self._key_id = caller.key_id
        self.account_id = caller.account_id or ""
        self._name = ""
        self._terms: NodeTerms | None = None

    async def terms(self, name: str) -> NodeTerms:
        self._tokens.count_hello(self.account_id)
        node_id = account_node_id(self.account_id, name)
        try:
            owner = await self._accounts.owners.terms(self.account_id, self._key_id, name, node_id)
        except self._accounts.stale:
            raise NotAdmitted("unavailable", "the gateway's database is away", is_final=False) from None
        if owner.frozen:
            raise NotAdmitted("frozen", "the operator has frozen this node")
        self._name, self._terms = name, self._tokens.terms(self.account_id, name, owner)
        return self._terms

    def holds(self) -> bool:
        try:
            return self._is_good()
        except self._accounts.stale:
            return False

    def is_revoked(self) -> bool:
        try:
            return not self._is_good()
        except self._accounts.stale:
            # Not known: nothing new is sent, and the connection stays.
            return False

    def _is_good(self) -> bool:
        caller = self._tokens.caller(self._token)
        if caller is None or caller.account_id != self.account_id:
            return False
        if self._terms is None:
            return True
        owner = self._accounts.owners.current(self._terms.node_id)
        if owner is None:
            return True
        return not owner.frozen and self._tokens.terms(self.account_id, self._name, owner) == self._terms


def token_digest(token: str) -> bytes:
    """Return the hash by which a token is kept."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


def account_node_id(account_id: str, name: str) -> str:
    """Return the id of an account's node: its name, and a mark of the account, so that no account can take another's name."""
    return f"{name}.{hashlib.sha256(account_id.encode()).hexdigest()[:_OWNER_CHARS]}"
