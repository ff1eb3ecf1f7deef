"""lnd, asked over gRPC: payments, invoices, permissions."""
