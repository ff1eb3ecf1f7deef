"""A simulated Lightning network in one process: the ports of a node for tests and for the embedded node."""
