"""/api/nodes and /api/admin/nodes on SQLite and PostgreSQL: their owners, page by page, and texts that are no ids."""

from datetime import UTC, datetime

import pytest

from lcp_gateway.accounts.callers import Scope
from lcp_gateway.store.accounts.nodes import Nodes
from tests.accounts.bank import Bank
from tests.http.front import front
from tests.store.conftest import database, migrated_database, migrated_file, postgres_where, sqlite_where, where  # noqa: F401 - fixtures
from tests.support.postgres import postgres  # noqa: F401 - a fixture

NO_IDS = ["%00", "gpu%00.ab12cd", "%F0%9F%94%91", "a%20b", "x" * 65, "'", "%2e%2e%2f"]


@pytest.fixture
def bank(database) -> Bank:  # noqa: F811 - the fixture
    return Bank(database)


async def owner_with_nodes(gateway, *names: str) -> tuple[str, str]:
    """Make an account whose nodes have connected; return its id and a key that reads its wallet."""
    account_id = await gateway.bank.customer()
    key = await gateway.key(account_id, scopes=frozenset({Scope.WALLET}))
    for name in names:
        at = datetime.now(UTC)
        await Nodes(gateway.bank.database).connected(f"{name}.ab12cd", account_id, "key_1", name, at)
    return account_id, key


async def test_a_text_that_is_no_id_is_not_found(bank):
    """PostgreSQL takes no NUL in a text: once that was a 500."""
    async with front(bank) as gateway:
        _, key = await owner_with_nodes(gateway, "gpu")
        asked = {}
        for wrong in NO_IDS:
            found = await gateway.ask("GET", f"/api/nodes/{wrong}/earnings", key)
            changed = await gateway.ask("POST", f"/api/admin/nodes/{wrong}", json={"reason": "why"})
            asked[wrong] = (found.status, changed.status)
    assert asked == dict.fromkeys(NO_IDS, (404, 404))


async def test_nodes_with_dots_and_dashes_are_listed_page_by_page(bank):
    """The cursor of a page is a node's id."""
    async with front(bank) as gateway:
        names = ["gpu-1", "gpu-2.local", "gpu_3"]
        account_id, key = await owner_with_nodes(gateway, *names)
        _, other = await owner_with_nodes(gateway)
        for path, by in (("/api/nodes", key), ("/api/admin/nodes", None)):
            seen, after = [], ""
            while after is not None:
                sent = {} if by is None else {"key": by}
                page = await gateway.ask("GET", f"{path}?limit=1&after={after}", **sent)
                assert page.status == 200, page.body
                seen += [node["name"] for node in page.document["data"]]
                after = page.document["after"]
            assert sorted(seen) == names
        earned = await gateway.ask("GET", "/api/nodes/gpu-1.ab12cd/earnings", key)
        assert (earned.status, earned.document["data"]) == (200, [])
        foreign = await gateway.ask("GET", "/api/nodes/gpu-1.ab12cd/earnings", other)
        assert foreign.status == 404
        changed = await gateway.ask(
            "POST", "/api/admin/nodes/gpu-1.ab12cd", json={"frozen": True, "commission_percent": 12.5, "reason": "liar"}
        )
        assert (changed.document["frozen"], changed.document["commission_percent"]) == (True, 12.5)
        assert changed.document["account_id"] == account_id
