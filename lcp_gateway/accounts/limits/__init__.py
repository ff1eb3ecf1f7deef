"""What bounds a caller: rates per minute, requests at one time, invoices per address."""
