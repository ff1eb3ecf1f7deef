"""Lightning primitives: invoices and the hash of a quote's terms."""
