"""What the HTTP side needs of whoever keeps the catalog."""

from typing import Protocol

from lcp_gateway.purchase.errors import UpstreamError
from lcp_gateway.routing.catalog import Catalog


class CatalogSource(Protocol):
    """A keeper of snapshots."""

    @property
    def catalog(self) -> Catalog:
        """The last snapshot."""
        ...

    @property
    def problem(self) -> UpstreamError | None:
        """Why the last refresh failed, or None."""
        ...

    @property
    def age_s(self) -> float:
        """How old the snapshot is."""
        ...

    async def refresh_if_stale(self) -> Catalog:
        """Give a fresh snapshot, or the last one if none can be had."""
        ...
