import pytest

from tests.accounts.bank import bank, migrated  # noqa: F401 - fixtures
from tests.http.storing_front import storing_front


@pytest.fixture
async def front():
    """A gateway that stores; at the end every admission must have been released."""
    async with storing_front() as made:
        yield made
        await made.idle()
