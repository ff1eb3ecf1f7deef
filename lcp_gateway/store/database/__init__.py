"""The database under the store: SQLite or PostgreSQL, its tables and their migrations."""
