"""``lcp-gateway join``: this machine as a node of a gateway elsewhere."""
