from tests.accounts.bank import bank, migrated  # noqa: F401 - fixtures
