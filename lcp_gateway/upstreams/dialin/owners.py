"""The owners of nodes as the accounts keep them: which account may use which name, and on which terms."""

from lcp_gateway.accounts.models import AccountError
from lcp_gateway.accounts.nodes import NodeRecord, NodeTermsCache
from lcp_gateway.upstreams.dialin.grants import NotAdmitted, OwnerTerms


class StoredOwners:
    """The ``NodeOwners`` of accounts."""

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
        """Return the terms of a node as they are now; None where they are not known."""
        record = self._nodes.find(node_id)
        return None if record is None else self._terms(record)

    def _terms(self, record: NodeRecord) -> OwnerTerms:
        return OwnerTerms(commission_ppm=self._nodes.commission_ppm(record), frozen=record.is_frozen)
