"""``python -m lcp_gateway.node [FILE.toml]``: a node by itself, for experiments."""

import sys
from pathlib import Path

from lcp_gateway.node.config import NodeConfig
from lcp_gateway.node.server import run_forever
from lcp_gateway.node.toml import ConfigError


def main(arguments: list[str]) -> int:
    """Run a node from a TOML file, or with its defaults."""
    try:
        config = NodeConfig.from_toml(Path(arguments[0])) if arguments else NodeConfig()
        run_forever(config)
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
