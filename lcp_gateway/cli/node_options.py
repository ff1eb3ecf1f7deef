"""What the command line can say about a node, in a form that passes to a child process. Imports nothing heavy."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcp_gateway.node.config import NodeConfig

STANDALONE_LISTEN = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """A node as the settings describe it; empty texts and zeros leave a matter to the node.

    ``backend_api_key`` is not part of ``to_json``: a child process gets it through its environment.
    """

    listen: str
    backend: str = "echo"
    backend_api_key: str = dataclasses.field(default="", repr=False)
    peers_file: str = ""
    faults: bool = False
    events_file: str = ""
    tokens_per_second: float = 0.0
    protocol_version: int = 0

    def to_json(self) -> str:
        """Write everything but the key."""
        fields = dataclasses.asdict(self)
        del fields["backend_api_key"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str, *, backend_api_key: str) -> "NodeOptions":
        """Read what ``to_json`` wrote."""
        return cls(**json.loads(text), backend_api_key=backend_api_key)

    def node_config(self) -> "NodeConfig":
        """Build the node's own configuration; the flags beat the file of peers.

        Raises:
            lcp_gateway.node.config.ConfigError: the file cannot be read, or a value is wrong.
        """
        from lcp_gateway.node.config import (  # noqa: PLC0415 - the gateway's own process never needs it
            ConfigError,
            NodeConfig,
        )

        try:
            base = NodeConfig.from_toml(Path(self.peers_file)) if self.peers_file else NodeConfig()
        except ConfigError as error:
            where = "" if self.peers_file in str(error) else f"{self.peers_file}: "
            raise ConfigError(f"{where}{error}") from None
        changes: dict[str, Any] = {
            "listen": self.listen,
            "backend": self.backend if self.backend != "echo" else "",
            "backend_api_key": self.backend_api_key,
            "faults": self.faults,
            "events_path": Path(self.events_file) if self.events_file else None,
            "tokens_per_second": self.tokens_per_second,
            "protocol_version": self.protocol_version,
        }
        return dataclasses.replace(
            base, **{name: value for name, value in changes.items() if value}
        )
