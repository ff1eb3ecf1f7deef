"""Commands about what a node over lnd sells."""
