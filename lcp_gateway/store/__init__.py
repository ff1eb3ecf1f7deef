"""Durable state: the journal of purchases, its budgets and its books, on SQLite or PostgreSQL."""
