"""An LCPDService of our own: a real gRPC server whose Lightning side is simulated."""
