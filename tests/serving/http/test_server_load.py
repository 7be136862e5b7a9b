"""A server under load: random clients that leave, malformed bodies, bursts beyond its queue, and a
signal to stop at the end. No answer is lost or mixed up, and memory stays flat."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from tests.harness import Server
from tests.jobs import WORDS
from tests.serving.conftest import Generate, Running, memory_of
from tests.serving.http.test_app import rows_of

REQUESTS = int(os.environ.get("LLMKIT_LOAD_REQUESTS", "1000"))
"""All of them; 10,000 take ten minutes."""
PER_SECOND = 10_000 / 600
BURST, BURSTS = 200, 0.2
"""How many requests come together in a burst, and the share of requests in bursts."""
MOST_GROWTH = 24 << 20
"""Bytes that the memory of the server may grow by after the first fifth of the requests."""

BODIES = (
    b"", b"{", b"[]", b"null", b'{"prompt": 3}', b'{"prompt": "a", "tools": []}', b"\xff\xfe\x00",
    b'{"prompt": "a", "n": -1}', b'{"prompt": "\\ud800"}', b'{"prompt": "' + b"a " * 400 + b'"}',
    b'{"prompt": "a", "max_tokens": 1e99}', b'{"prompt": "a", "model": "other"}', b"[" * 9_999,
)  # fmt: skip
"""Bodies that are refused."""


@dataclass
class Load:
    """What the clients ask for, and what became of it."""

    url: str
    texts: Sequence[dict[str, Any]]
    """Prompts and seeds with the text of `llmkit generate`."""
    labels: Sequence[dict[str, Any]]
    """Texts with the label of `llmkit predict`."""
    ends: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    stopping: bool = False

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_connections=400, max_keepalive_connections=50)
        self.http = httpx.AsyncClient(base_url=self.url, timeout=120, limits=limits)
        self.client = openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120
        )

    async def ask(self, chance: random.Random) -> None:
        """One request of a random kind."""
        kinds: tuple[Callable[[random.Random], Any], ...] = (
            self.complete, self.complete, self.stream, self.stream, self.classify, self.leave,
            self.leave_stream, self.send_nonsense,
        )  # fmt: skip
        kind = chance.choice(kinds)
        try:
            self.ends[await kind(chance)] += 1
        except (openai.RateLimitError, openai.InternalServerError) as refused:
            self.refused(refused.status_code)
        except (openai.APIConnectionError, httpx.TransportError) as fault:
            self.ends["closed" if self.stopping else f"lost: {fault!r}"] += 1

    def refused(self, status: int) -> None:
        """Counts a refusal: of a full queue, or of a server that is stopping."""
        allowed = status == 429 or (status == 503 and self.stopping)
        self.ends[str(status) if allowed else f"unexpected {status}"] += 1

    def compare(self, found: object, expected: object) -> str:
        """The end of a request whose answer is known."""
        if found != expected:
            self.wrong.append(f"{found!r} instead of {expected!r}")
        return "answered"

    async def complete(self, chance: random.Random) -> str:
        row = chance.choice(self.texts)
        asked = {"prompt": row["prompt"], "seed": row["seed"]}
        found = await self.client.completions.create(model="talker", **asked)
        return self.compare(found.choices[0].text, row["text"])

    async def stream(self, chance: random.Random) -> str:
        row = chance.choice(self.texts)
        asked = {"prompt": row["prompt"], "seed": row["seed"]}
        chunks = await self.client.completions.create(model="talker", stream=True, **asked)
        return self.compare("".join([c.choices[0].text async for c in chunks]), row["text"])

    async def classify(self, chance: random.Random) -> str:
        rows = chance.choices(self.labels, k=chance.randint(1, 8))
        body = {"input": [row["text"] for row in rows]}
        response = await self.http.post("/v1/classify", json=body)
        if response.status_code != 200:
            self.refused(response.status_code)
            return "refused"
        labels = [each["label"] for each in response.json()["data"]]
        return self.compare(labels, [row["label"] for row in rows])

    async def leave(self, chance: random.Random) -> str:
        body = {"model": "talker", "prompt": "the cat", "max_tokens": 100}
        try:
            await self.http.post("/v1/completions", json=body, timeout=chance.random() / 4)
        except httpx.TimeoutException:
            return "left"
        return "answered before it left"

    async def leave_stream(self, chance: random.Random) -> str:
        body = {"model": "talker", "prompt": "a dog", "max_tokens": 100, "stream": True}
        left = chance.randrange(20)
        async with self.http.stream("POST", "/v1/completions", json=body) as response:
            async for _ in response.aiter_raw():
                left -= 1
                if left < 0:
                    return "left"
        return "answered before it left"

    async def send_nonsense(self, chance: random.Random) -> str:
        path = chance.choice(("/v1/completions", "/v1/chat/completions", "/v1/classify"))
        response = await self.http.post(
            path, content=chance.choice(BODIES), headers={"content-type": "application/json"}
        )
        if response.status_code in (429, 503):
            self.refused(response.status_code)
            return "refused"
        if response.status_code not in (400, 404) or "error" not in response.json():
            self.wrong.append(f"{response.status_code}: {response.text}")
        return "malformed"


async def sent(load: Load, running: Running) -> list[int]:
    """Sends all requests over the time, the last of them around SIGTERM; the memory of the server
    meanwhile."""
    chance, memory = random.Random(0), list[int]()
    tasks: list[asyncio.Task[None]] = []

    def send(count: int) -> None:
        seeds = [chance.random() for _ in range(count)]
        tasks.extend(asyncio.create_task(load.ask(random.Random(seed))) for seed in seeds)

    plan: list[int] = []
    while sum(plan) < REQUESTS:
        plan.append(BURST if chance.random() < BURSTS / BURST else 1)
    for number, count in enumerate(plan):
        send(count)
        if number % max(1, len(plan) // 50) == 0:
            memory.append(memory_of(running.trial.process))
        await asyncio.sleep(count * chance.expovariate(PER_SECOND))
    send(100)
    await asyncio.sleep(0.5)
    load.stopping = True
    running.trial.send(signal.SIGTERM)
    send(20)
    await asyncio.gather(*tasks)
    await load.http.aclose()
    await load.client.close()
    return memory


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_answer_is_lost_or_mixed_up_and_memory_is_flat(
    serve: Callable[..., Running],
    forker: Server,
    talker: Path,
    sorter: Path,
    generate: Generate,
    tmp_path: Path,
) -> None:
    words = sorted(set(WORDS))  # the same prompt again would have another text
    prompts = [{"prompt": word, "seed": seed} for seed in range(8) for word in words]
    texts = generate(talker, prompts)
    labels = rows_of(forker, sorter, [{"text": f"{a} {b}"} for a in WORDS for b in WORDS], tmp_path)
    models = [part for path in (f"talker={talker}", sorter) for part in ("--model", path)]
    running = serve(
        *models, "serve.max_queue=64", "generation.max_new_tokens=24", "predict.precision=fp32"
    )
    load = Load(running.url, texts, labels)
    memory = asyncio.run(sent(load, running))
    ended = running.trial.end()
    fifth = len(memory) // 5
    growth = max(memory[fifth:]) - memory[fifth]
    ends = {name: count for name, count in load.ends.most_common() if name != "refused"}
    print(json.dumps({"ends": ends, "MiB": [each >> 20 for each in memory[:: fifth or 1]]}))
    assert load.wrong == []
    assert not [name for name in ends if name.startswith(("lost", "unexpected"))]
    assert ends["429"] > 0
    assert ends["answered"] > REQUESTS // 3
    assert ended.code == 0, ended.err
    assert "Traceback" not in ended.err
    assert growth < MOST_GROWTH, [each >> 20 for each in memory]
