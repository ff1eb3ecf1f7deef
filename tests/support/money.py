"""Helpers of the black-box tests of money: peers to buy from, the wallet's events and the gateway's headers."""

from collections import Counter
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.gateway import RunningGateway
from tests.support.wire import CHAT, Answer, document, get, post


def accepts(served: RunningGateway, job_id: str | None = None) -> list[str]:
    """The jobs that were accepted, one entry for each call."""
    found = [event["job_id"] for event in served.events("accept")]
    return [job for job in found if job_id in {None, job}]


def paid(served: RunningGateway) -> Counter:
    return Counter(event["job_id"] for event in served.events("paid"))


def lcp(answer: Answer) -> dict[str, str]:
    """The headers about the purchase."""
    return {name: value for name, value in answer.headers.items() if name.startswith("x-lcp-")}


def metric(served: RunningGateway, name: str, *, headers=None, **labels: str) -> float:
    text = get(served.port, "/metrics", headers).body.decode()
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == f"lcpgateway_{name}" and labels.items() <= sample.labels.items()
    )


def ask(served: RunningGateway, text: str, path: str = CHAT, *, headers=None, **more) -> Answer:
    return post(served.port, path, document(path, text=text, **more), headers)


def quoted(served: RunningGateway, text: str, *, headers=None, **more) -> dict:
    """Request a quote only."""
    answer = ask(served, text, headers={**(headers or {}), "X-Lcp-Quote-Only": "true"}, **more)
    assert answer.status == 200, answer.body
    return answer.json


def shops(folder: Path, *lines: str) -> str:
    """Write a file of peers, each a line of ``alias base_msat [setting=value]`` that sells echo-1; return its path."""
    parts = []
    for line in lines:
        alias, base, *more = line.split()
        parts.append(f'[[peers]]\nalias = "{alias}"')
        parts += [setting.replace("=", " = ") for setting in more]
        parts.append(
            f'[[peers.models]]\nname = "echo-1"\nbase_msat = {base}\nprompt_token_msat = 0\noutput_token_msat = 0'
        )
    file = folder / "peers.toml"
    file.write_text("\n".join(parts) + "\n")
    return str(file)
