"""The embedded node's process: started by ``serve --embedded``, ended when its parent ends; and the options passed to it.

It imports nothing heavy, and none of the gateway.
"""

import contextlib
import dataclasses
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lcp_gateway.node.config import NodeConfig

STANDALONE_LISTEN = "127.0.0.1:50051"


@dataclass(frozen=True, slots=True)
class NodeOptions:
    """A node as the settings describe it; empty texts and zeros stand for the node's own defaults.

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
        """Write all fields but the key."""
        fields = dataclasses.asdict(self)
        del fields["backend_api_key"]
        return json.dumps(fields)

    @classmethod
    def from_json(cls, text: str, *, backend_api_key: str) -> "NodeOptions":
        """Read what ``to_json`` wrote."""
        return cls(**json.loads(text), backend_api_key=backend_api_key)

    def node_config(self) -> "NodeConfig":
        """Build the node's own configuration; the flags override the file of peers.

        Raises:
            lcp_gateway.node.toml.ConfigError: the file cannot be read, or a value is wrong.
        """
        from lcp_gateway.node.config import NodeConfig  # noqa: PLC0415 - only where a node runs
        from lcp_gateway.node.toml import ConfigError  # noqa: PLC0415 - as above

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
        return dataclasses.replace(base, **{name: value for name, value in changes.items() if value})


KEY_VARIABLE = "LCP_GATEWAY_NODE_BACKEND_API_KEY"
FOLDER_PREFIX = "lcp-gateway-"
"""The prefix of the folders that are made for a private socket."""
CONFIG_ERROR = 2
RUNTIME_ERROR = 1


def main() -> int:
    """Run the node that the first argument describes until standard input ends."""
    from lcp_gateway.node.ports import ComputeError  # noqa: PLC0415 - the parent uses only the names above
    from lcp_gateway.node.server import run_forever  # noqa: PLC0415 - as above
    from lcp_gateway.node.toml import ConfigError  # noqa: PLC0415 - as above

    try:
        key = os.environ.get(KEY_VARIABLE, "")
        options = NodeOptions.from_json(sys.argv[1], backend_api_key=key)
        run_forever(options.node_config(), exit_with_stdin=True)
        _remove_socket_folder(options.listen)
    except ConfigError as error:
        sys.stderr.write(f"lcp-gateway: node: {error}\n")
        return CONFIG_ERROR
    except ComputeError as error:
        sys.stderr.write(f"lcp-gateway: node: {error}\n")
        return RUNTIME_ERROR
    return 0


def _remove_socket_folder(listen: str) -> None:
    """Remove the folder of a private socket if it is empty: a gateway that was killed cannot do so."""
    scheme, _, socket = listen.partition(":")
    folder = Path(socket).parent
    if scheme == "unix" and folder.name.startswith(FOLDER_PREFIX):
        with contextlib.suppress(OSError):
            folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
