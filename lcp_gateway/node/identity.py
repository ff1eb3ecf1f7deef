"""Keys that a seed decides, so that the same node is itself again after a restart."""

from hashlib import sha256

from coincurve import PrivateKey


def derive_key(seed: str, name: str) -> PrivateKey:
    """Give the private key of one party. Simulation only: a seed is guessed as easily as it is read."""
    return PrivateKey(sha256(f"lcp-gateway node\n{seed}\n{name}".encode()).digest())


def public_id(key: PrivateKey) -> str:
    """Write a party's public key as Lightning does, 66 lower-case hex digits."""
    return key.public_key.format().hex()
