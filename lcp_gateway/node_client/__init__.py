"""The node's side of dialling in: serves the models of a backend on this machine to a gateway elsewhere."""
