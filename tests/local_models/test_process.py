"""The process of local models with a stand-in for llama-server: loading, both ways of bytes, and no process left behind."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from http import HTTPStatus

import psutil
import pytest

from lcp_gateway.cli.output import CommandFailed
from lcp_gateway.cli.serve.local_models import LocalModels, check_local_models
from lcp_gateway.local_models.options import LocalModel, LocalModelOptions
from tests.support.fake_llama_server import installed, model_file
from tests.support.node_thread import eventually


@pytest.fixture
def options(tmp_path):
    models = (
        LocalModel("chat", str(model_file(tmp_path, "chat", load_s=0.3))),
        LocalModel("vectors", str(model_file(tmp_path, "vectors")), type="embedding"),
        LocalModel("broken", str(model_file(tmp_path, "broken", fails=True))),
        LocalModel("slow", str(model_file(tmp_path, "slow", tokens=10_000, pause_s=0.01))),
        LocalModel("deaf", str(model_file(tmp_path, "deaf", deaf=True))),
    )
    return LocalModelOptions(models, str(installed(tmp_path)), str(tmp_path / "state"), loaded_max=2)


@pytest.fixture
def running(options):
    with LocalModels(options, tell=print) as models:
        yield models
        children = family(models.pid)
    assert not alive(children), "left behind"


def family(pid):
    return psutil.Process(pid).children(recursive=True) if pid else []


def alive(processes):
    _, left = psutil.wait_procs(processes, timeout=60)
    return left


def ask(models, path="/chat/completions", key=None, **body):
    request = urllib.request.Request(
        models.base_url + path,
        json.dumps(body).encode() if body else None,
        {"authorization": f"Bearer {key or models.api_key}", "content-type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_models_are_listed_loaded_or_not_and_answer_once_they_are_loaded(running, options):
    status, listed = ask(running, "/models")
    assert status == 200
    assert {model["id"]: model["status"] for model in json.loads(listed)["data"]} == dict.fromkeys(
        ("chat", "vectors", "broken", "slow", "deaf"), "unloaded"
    )
    status, answer = ask(running, model="chat", messages=[])
    assert (status, json.loads(answer)["choices"][0]["message"]["content"]) == (200, "word word word")
    status, answer = ask(running, model="chat", stream=True, messages=[])
    assert status == 200 and answer.endswith(b"data: [DONE]\n\n") and answer.count(b"data:") == 5
    status, answer = ask(running, "/embeddings", model="vectors", input="x")
    assert (status, json.loads(answer)["data"][0]["embedding"]) == (200, [0.5, -0.25])


def test_other_users_of_the_machine_get_nothing(running):
    assert ask(running, "/models", key="x")[0] == 401
    assert ask(running, key="x", model="chat")[0] == 401


def test_what_cannot_be_served_is_said_in_openais_shape(running):
    status, answer = ask(running, model="unheard-of")
    assert (status, json.loads(answer)["error"]["code"]) == (404, "model_not_found")
    status, answer = ask(running, model="broken")
    error = json.loads(answer)["error"]
    assert (status, error["code"]) == (503, "model_not_available")
    assert error["message"] == "llama-server ended with code 1 while it loaded 'broken'"
    assert ask(running, model=7)[0] == 404


def test_a_killed_server_is_started_again_and_its_answer_in_between_is_cut(running):
    request = urllib.request.Request(
        running.base_url + "/chat/completions",
        json.dumps({"model": "slow", "stream": True}).encode(),
        {"authorization": f"Bearer {running.api_key}"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert answer.readline().startswith(b"data:")
        for process in family(running.pid):
            with contextlib.suppress(psutil.Error):
                process.kill()
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            answer.read()
    eventually(lambda: ask(running, model="slow", messages=[])[0] == HTTPStatus.OK)


def test_one_that_does_not_listen_to_sigterm_is_killed(running):
    assert ask(running, model="deaf", messages=[])[0] == 200


def test_they_end_when_the_process_above_is_killed(running):
    assert ask(running, model="chat", messages=[])[0] == 200
    first = running.pid
    children = family(first)
    assert children
    os.kill(first, signal.SIGKILL)
    assert not alive(children)
    # The socket stayed open: requests wait for the new process.
    assert ask(running, model="chat", messages=[])[0] == 200
    assert running.pid != first


def test_logs_and_keys_are_private_and_keys_do_not_stay(running, options, tmp_path):
    ask(running, model="chat", messages=[])
    folder = tmp_path / "state"
    assert folder.stat().st_mode & 0o777 == 0o700
    names = [path.name for path in folder.iterdir()]
    assert [name.partition("-")[0] for name in names] == ["chat"] and names[0].endswith(".log")
    with contextlib.suppress(psutil.Error):
        for process in family(running.pid):
            assert running.api_key not in " ".join(process.cmdline())


def test_only_the_process_itself_loads_what_runs_models():
    code = "import sys, lcp_gateway.cli.serve.local_models; sys.exit(bool({'aiohttp', 'psutil'} & {*sys.modules}))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_without_llama_server_one_line_says_how_to_get_it(tmp_path):
    with pytest.raises(CommandFailed) as failed:
        check_local_models(LocalModelOptions((LocalModel("a", hf_repo="o/r"),), "no-such-llama", str(tmp_path)))
    (line,) = failed.value.lines
    assert "'no-such-llama' was not found" in line and "brew install llama.cpp" in line
