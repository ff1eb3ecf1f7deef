"""The node's ports at an lnd: custom messages, payments and invoices over its gRPC interface."""
