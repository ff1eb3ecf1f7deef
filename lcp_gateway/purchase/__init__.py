"""Purchases: from a task to a quote, a payment and a delivered result. Plain Python, no sockets."""
