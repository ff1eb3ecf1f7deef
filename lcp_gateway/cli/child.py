"""The embedded node's process: started by ``serve --embedded``, and over when its parent is."""

import contextlib
import os
import sys
from pathlib import Path

from lcp_gateway.cli.node_options import NodeOptions

KEY_VARIABLE = "LCP_GATEWAY_NODE_BACKEND_API_KEY"
FOLDER_PREFIX = "lcp-gateway-"
"""What the names of the folders begin with that are made for a private socket."""
CONFIG_ERROR = 2
RUNTIME_ERROR = 1


def main() -> int:
    """Run the node that the first argument describes until standard input ends."""
    from lcp_gateway.node.compute.base import BackendUnavailable  # noqa: PLC0415 - the parent reads the names above only
    from lcp_gateway.node.config import ConfigError  # noqa: PLC0415 - as above
    from lcp_gateway.node.main import run_forever  # noqa: PLC0415 - as above

    try:
        key = os.environ.get(KEY_VARIABLE, "")
        options = NodeOptions.from_json(sys.argv[1], backend_api_key=key)
        run_forever(options.node_config(), exit_with_stdin=True)
        _tidy(options.listen)
    except ConfigError as error:
        sys.stderr.write(f"lcp-gateway: node: {error}\n")
        return CONFIG_ERROR
    except BackendUnavailable as error:
        sys.stderr.write(f"lcp-gateway: node: {error}\n")
        return RUNTIME_ERROR
    return 0


def _tidy(listen: str) -> None:
    """Remove the folder of a private socket: a gateway that was killed cannot. Takes nothing but an empty folder."""
    scheme, _, socket = listen.partition(":")
    folder = Path(socket).parent
    if scheme == "unix" and folder.name.startswith(FOLDER_PREFIX):
        with contextlib.suppress(OSError):
            folder.rmdir()


if __name__ == "__main__":
    sys.exit(main())
