"""Customers: keys, accounts, top-ups, and the limits of their requests."""
