"""The protocol between a gateway and the nodes that dial in, as bytes and events, without I/O: docs/node-protocol.md."""
