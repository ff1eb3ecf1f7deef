"""Was it bought? Asked of the journal for a request whose gateway is gone."""

from datetime import datetime

from sqlalchemy import Connection, select

from lcp_gateway.purchase.states import State
from lcp_gateway.store.database import Database
from lcp_gateway.store.tables import purchases
from lcp_gateway.store.times import to_micros


async def state_of_request(
    database: Database, key_id: str, request_id: str, since: datetime
) -> State | None:
    """Give where the newest purchase of a request stands that was not for nothing; None where nothing was paid.

    ``since`` is when the request was taken up, by the clock of the gateway that did.

    Raises:
        DatabaseUnavailable: it cannot be told.
    """
    query = (
        select(purchases.c.state)
        .where(
            purchases.c.paying_at >= to_micros(since),
            purchases.c.key_id == key_id,
            purchases.c.request_id == request_id,
            purchases.c.state != State.NOT_PAID.value,
        )
        .order_by(purchases.c.paying_at.desc())
        .limit(1)
    )

    def work(connection: Connection) -> State | None:
        found = connection.execute(query).scalar()
        return None if found is None else State(found)

    return await database.read(work)
