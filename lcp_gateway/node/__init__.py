"""The simulated node: an LCPDService behind a real gRPC server, with simulated Lightning payments."""
