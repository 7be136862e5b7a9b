"""Limits: of the queue and of the time; and clients that leave."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.serving.conftest import NOVEL, Generate, Running

Serve = Callable[..., Running]


def waits_for(condition: Callable[[], bool]) -> None:
    """Waits until a condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def long(tokens: int = 39_000) -> dict[str, Any]:
    """The body of a request that lasts."""
    return {"prompt": "a", "max_tokens": tokens}


def test_a_full_queue_refuses_with_the_time_to_wait(serve: Serve, novelist: Path) -> None:
    running = serve(
        "--model", novelist, NOVEL, "serve.max_queue=2", "generation.micro_batch_size=1",
        "--grace", 0,
    )  # fmt: skip
    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(running.post, "/v1/completions", long())]
        waits_for(lambda: running.figure("llmkit_running_requests") == 1)
        asked += [pool.submit(running.post, "/v1/completions", long(4)) for _ in range(2)]
        waits_for(lambda: running.figure("llmkit_waiting_requests") == 2)
        ready, refused = running.get("/ready"), running.post("/v1/completions", long(4))
        assert running.get("/health").status_code == 200
        assert running.stop().code == 0
    assert ready.status_code == 503
    assert "2 requests are waiting already" in ready.json()["reason"]
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "queue_full"
    assert int(refused.headers["retry-after"]) >= 1
    assert [each.result().status_code for each in asked] == [503] * 3


def test_the_client_of_openai_comes_back_after_a_full_queue(serve: Serve, base: Path) -> None:
    running = serve(
        "--model", f"base={base}", "serve.max_queue=1", "generation.micro_batch_size=1",
        "generation.max_new_tokens=100",
    )  # fmt: skip
    client = running.client(max_retries=100)
    create = client.completions.create
    with ThreadPoolExecutor(8) as pool:
        texts = list(
            pool.map(lambda n: create(model="base", prompt="a", seed=n).choices[0].text, range(8))
        )
    assert texts == [create(model="base", prompt="a", seed=n).choices[0].text for n in range(8)]
    assert running.figure("llmkit_requests_total", status="429") > 0
    assert running.stop().code == 0


def test_a_request_has_a_limited_time(serve: Serve, novelist: Path) -> None:
    running = serve("--model", f"novelist={novelist}", NOVEL, "serve.max_seconds=0.5")
    response = running.post("/v1/completions", long())
    assert response.status_code == 504
    assert response.json()["error"]["code"] == "timeout"
    assert response.headers["x-should-retry"] == "false"
    stream = running.client().completions.create(model="novelist", stream=True, **long())
    with pytest.raises(openai.APIError, match=r"more than 0.5 s \(serve.max_seconds\)"):
        list(stream)
    waits_for(lambda: running.figure("llmkit_running_requests") == 0)
    assert running.figure("llmkit_ended_early_total", reason="timeout") == 2
    assert running.stop().code == 0


@pytest.mark.slow
def test_a_client_that_does_not_read_frees_its_place_in_the_end(
    serve: Serve, novelist: Path
) -> None:
    running = serve("--model", novelist, NOVEL, "serve.max_seconds=4")
    host, port = running.url.removeprefix("http://").split(":")
    body = json.dumps({**long(), "stream": True, "logprobs": 20, "n": 16}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.connect((host, int(port)))
        deaf.sendall(f"{head}Content-Type: application/json\r\n\r\n".encode() + body)
        waits_for(lambda: running.figure("llmkit_running_requests") == 1)
        waits_for(lambda: running.figure("llmkit_running_requests") == 0)
    assert running.post("/v1/completions", long(4)).status_code == 200
    assert running.stop().code == 0


def test_a_client_that_leaves_frees_its_place(
    serve: Serve, novelist: Path, generate: Generate
) -> None:
    running = serve(
        "--model", f"novelist={novelist}", NOVEL, "generation.micro_batch_size=2", "--json"
    )
    client = running.client()
    for number in range(1, 4):
        stream = client.completions.create(model="novelist", stream=True, **long())
        next(iter(stream))
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{running.url}/v1/completions", json=long(), timeout=0.5)
        stream.close()
        waits_for(lambda: running.figure("llmkit_running_requests") == 0)
        left = running.figure("llmkit_ended_early_total", reason="client")
        assert left == 2 * number
    [expected] = generate(novelist, [{"prompt": "the", "seed": 3}])
    body = {"prompt": "the", "seed": 3, "max_tokens": 24}
    found = running.post("/v1/completions", body).json()["choices"][0]["text"]
    assert found == expected["text"]
    assert running.stop().code == 0
