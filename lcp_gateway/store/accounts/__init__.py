"""Customers, their keys and their money, as the database keeps them."""
