"""Runs the steps on the connection, and inside the transaction, that the caller hands over."""

from alembic import context

from lcp_gateway.store.database.schema import metadata


def run() -> None:
    """Apply what is missing.

    Raises:
        KeyError: no connection was handed over; the steps are run by the gateway, not by hand.
    """
    connection = context.config.attributes["connection"]
    context.configure(connection=connection, target_metadata=metadata, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


run()
