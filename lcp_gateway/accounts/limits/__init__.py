"""The limits of a caller: rates per minute, concurrent jobs, invoices per address."""
