"""Configuration files with nodes, for commands that list offers."""

from pathlib import Path


def table(name: str, base_url: str, **fields) -> str:
    """Return the TOML table of one node, with strings, numbers and lists of strings."""
    given = {"name": name, "base_url": base_url, **fields}
    lines = [f"{key} = {written(value)}" for key, value in given.items()]
    return "\n".join(["[[nodes]]", *lines, ""])


def written(value) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def config_file(folder: Path, *parts: str) -> str:
    """Write a file that only its owner may read, as a file with keys must be, and return its path."""
    path = folder / "market.toml"
    path.write_text("\n".join(parts))
    path.chmod(0o600)
    return str(path)
