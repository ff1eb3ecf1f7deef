"""Nodes that dial in: providers that open the connection themselves, and are paid on delivery."""
