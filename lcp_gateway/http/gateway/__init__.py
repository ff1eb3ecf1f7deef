"""The gateway's own routes: administration, wallet, L402, receipts, routing, health."""
