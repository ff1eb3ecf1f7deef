"""The node's LCPDService: the calls of its clients in both versions, over gRPC or in the process of the client."""
