import pytest

from lcp_gateway.node.storage.store import SqliteStore


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "node.db"


@pytest.fixture
async def open_store(path):
    """Opens the store again and again, as a node does that is started anew; the last one is closed at the end."""
    opened = []

    async def again(**settings):
        if opened:
            await opened.pop().close()
        store = await SqliteStore.open(settings.pop("path", path), **settings)
        opened.append(store)
        return store

    yield again
    for store in opened:
        await store.close()
