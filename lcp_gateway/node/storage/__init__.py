"""A node's database: SQLite, one writer, requests and results encrypted at rest or never written."""
