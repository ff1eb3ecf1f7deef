"""Connections: the protocol on one, the addresses listened on, TLS, and the proxies in front."""
