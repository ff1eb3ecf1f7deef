"""How a task becomes a quote, a payment and a delivered result. Plain Python, no sockets."""
