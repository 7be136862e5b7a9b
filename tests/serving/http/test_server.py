"""Signals: begun requests finish within the grace, new ones are refused, and a second one ends."""

from __future__ import annotations

import json
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.serving.conftest import NOVEL, Generate, Running

Serve = Callable[..., Running]


def novel(client: openai.OpenAI, tokens: int) -> Iterator[str]:
    """The pieces of a long text, as they arrive."""
    stream = client.completions.create(
        model="novelist", prompt="a", seed=1, max_tokens=tokens, stream=True
    )
    return (chunk.choices[0].text for chunk in stream)


def named(path: Path) -> tuple[str, str]:
    return "--model", f"novelist={path}"


def test_a_begun_stream_finishes_after_sigterm_and_new_requests_are_refused(
    serve: Serve, novelist: Path, generate: Generate
) -> None:
    running = serve(*named(novelist), NOVEL)
    pieces = novel(running.client(), 1500)
    text = next(pieces)
    running.trial.send(signal.SIGTERM)
    running.trial.until("stopping: 1 request has 30 s to finish")
    ready, health = running.get("/ready"), running.get("/health")
    assert (ready.status_code, health.status_code) == (503, 200)
    assert "is stopping" in ready.json()["reason"]
    refused = running.post("/v1/completions", {"prompt": "a"})
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "stopping"
    assert int(refused.headers["retry-after"]) > 0
    text += "".join(pieces)
    ended = running.trial.end()
    assert ended.code == 0, ended.err
    assert json_of(ended.out) == {}
    [expected] = generate(novelist, [{"prompt": "a", "seed": 1}], "generation.max_new_tokens=1500")
    assert text == expected["text"]


def json_of(out: str) -> dict[str, object]:
    """The JSON objects on stdout, the last of them whole."""
    lines = [line for line in out.splitlines() if line.startswith("{")]
    return json.loads(lines[-1]) if lines else {}


def test_requests_that_last_longer_than_the_grace_end_with_an_error(
    serve: Serve, novelist: Path
) -> None:
    running = serve(*named(novelist), NOVEL, "--grace", 0.3, "--json")
    pieces = novel(running.client(), 39_000)
    next(pieces)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(running.post, "/v1/completions", {"prompt": "b", "max_tokens": 39_000})
        while running.figure("llmkit_running_requests") < 2:
            pass
        running.trial.send(signal.SIGTERM)
        with pytest.raises(openai.APIError, match="the server is stopping"):
            list(pieces)
        assert whole.result().status_code == 503
    ended = running.trial.end()
    assert ended.code == 0
    found = json_of(ended.out)
    assert found["requests_cut"] == 2
    assert "2 requests did not finish within serve.grace" in str(found["warnings"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_second_signal_ends_at_once(
    serve: Serve, novelist: Path, number: signal.Signals, code: int
) -> None:
    running = serve(*named(novelist), NOVEL, "--grace", 1000)
    pieces = novel(running.client(), 39_000)
    next(pieces)
    running.trial.send(number)
    running.trial.until("has 1000 s to finish")
    began = time.monotonic()
    ended = running.stop(number)
    assert ended.code == code
    assert time.monotonic() - began < 30
    with pytest.raises((openai.APIError, httpx.HTTPError)):
        list(pieces)


def test_ctrl_c_stops_an_idle_server(serve: Serve, base: Path) -> None:
    running = serve("--model", f"base={base}")
    assert running.post("/v1/completions", {"prompt": "a"}).status_code == 200
    ended = running.stop(signal.SIGINT)
    assert ended.code == 130
    assert "kept:  1 request answered before" in ended.err
    assert "Traceback" not in ended.err


def test_a_connection_that_says_nothing_does_not_delay_the_end(serve: Serve, base: Path) -> None:
    running = serve("--model", f"base={base}")
    host, port = running.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as silent:
        silent.send(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n\r\n{")
        assert running.get("/health").status_code == 200
        assert running.stop().code == 0
