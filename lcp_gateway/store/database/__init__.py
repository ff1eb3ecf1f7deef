"""The database of the store: SQLite or PostgreSQL, its tables and their migrations."""
