"""A fault stays with its request; an engine that fails again and again is dead and says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from llmkit.config.load import load_config
from llmkit.serving.engines.worker import MOST_FAILURES
from llmkit.serving.http.app import build_app
from llmkit.serving.http.guard import Guard
from llmkit.serving.http.keys import ApiKeys
from llmkit.serving.served import open_served
from llmkit.serving.service import Service, load_service
from llmkit.serving.text_model import TextModel

Scenario = Callable[[httpx.AsyncClient], Awaitable[None]]


class Inside:
    """A server in this process, whose model can be spoilt."""

    def __init__(self, model: Path, other: Path, *settings: str) -> None:
        keys = [f"serve.models=[a={model},b={other}]", "generation.max_new_tokens=12", *settings]
        config = load_config("serve", None, keys).config
        self.warnings: list[str] = []
        self.service: Service = load_service(open_served(config), config, self.warnings.append)
        self.happened: list[str] = []
        """The forward passes of the models and the texts that were sent, in order."""

    def forward(self, name: str) -> torch.nn.Module:
        """The input embeddings of a model."""
        model = self.service.models[name]
        assert isinstance(model, TextModel)
        found: torch.nn.Module = model.engine.model.get_input_embeddings()
        return found

    def note_pass(self, _: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        """Notes a forward pass, as a hook of the embeddings."""
        self.happened.append("prompts" if inputs[0].shape[1] > 1 else "step")

    def noting_texts(self, app: ASGIApp) -> ASGIApp:
        """The application, whose texts are noted with their seed when they are sent."""

        async def noting(scope: Scope, receive: Receive, send: Send) -> None:
            async def noted(message: Message) -> None:
                await send(message)
                if b'"text":' in (sent := message.get("body", b"")):
                    self.happened += re.findall(r'"seed":(\d+)', sent.decode())

            await app(scope, receive, noted)

        return noting

    def run(self, scenario: Scenario) -> None:
        """Sends the requests of a scenario."""

        async def within() -> None:
            service = self.service
            app = Guard(
                build_app(service), service.config.serve, ApiKeys(), service.metrics,
                self.warnings.append,
            )  # fmt: skip
            service.worker.start(asyncio.get_running_loop())
            transport = httpx.ASGITransport(self.noting_texts(app), raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://inside") as client:
                await scenario(client)
            service.worker.stop()

        asyncio.run(within())


@pytest.fixture
def inside(talker: Path, base: Path) -> Inside:
    return Inside(talker, base)


@pytest.fixture
def poisoned(inside: Inside) -> Iterator[str]:
    """A prompt that no forward pass of model a can compute."""
    model = inside.service.models["a"]
    assert isinstance(model, TextModel)
    [id] = model.engine.tokenizer("7", add_special_tokens=False)["input_ids"]

    def check(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[1] > 1 and (inputs[0] == id).any():
            raise RuntimeError("a poisoned token")

    hook = inside.forward("a").register_forward_pre_hook(check)
    yield "the 7"
    hook.remove()


def body(prompt: str, model: str = "a", **fields: Any) -> dict[str, Any]:
    return {"model": model, "prompt": prompt, "seed": 1, **fields}


async def texts_of(client: httpx.AsyncClient, bodies: list[dict[str, Any]]) -> list[str | int]:
    """The texts of concurrent requests, or their statuses if they failed."""
    several = [client.post("/v1/completions", json=each, timeout=60) for each in bodies]
    return [
        each.json()["choices"][0]["text"] if each.status_code == 200 else each.status_code
        for each in await asyncio.gather(*several)
    ]


def test_a_request_that_cannot_be_computed_fails_alone(inside: Inside, poisoned: str) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        good = [body(prompt) for prompt in ("the cat", "a dog", "home", "x")]
        alone = [(await texts_of(client, [each]))[0] for each in good]
        mixed = await texts_of(client, [*good[:2], body(poisoned), *good[2:]])
        assert mixed == [*alone[:2], 500, *alone[2:]]
        assert (await client.get("/health")).status_code == 200
        streamed = await client.post("/v1/completions", json=body(poisoned, stream=True))
        assert streamed.status_code == 500
        assert streamed.json()["error"]["message"] == "the request failed: RuntimeError"

    inside.run(scenario)
    assert any("a poisoned token" in warning for warning in inside.warnings)


def test_an_engine_that_only_fails_is_dead(inside: Inside) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("the device is gone")

    async def scenario(client: httpx.AsyncClient) -> None:
        assert (await client.get("/ready")).status_code == 200
        hook = inside.forward("a").register_forward_pre_hook(fail)
        for _ in range(MOST_FAILURES):
            response = await client.post("/v1/completions", json=body("the cat"))
            assert response.status_code in (500, 503)
        for path in ("/health", "/ready"):
            response = await client.get(path)
            assert response.status_code == 503
            assert "forward passes have failed" in response.json()["reason"]
        hook.remove()
        for model in ("a", "b"):
            response = await client.post("/v1/completions", json=body("the cat", model))
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "engine_dead"

    inside.run(scenario)


def test_a_death_in_the_middle_ends_every_open_request(inside: Inside) -> None:
    """SystemExit is not a fault of a request: the thread ends, and all that it has begun fails."""

    def end(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[1] == 1:
            raise SystemExit

    async def scenario(client: httpx.AsyncClient) -> None:
        hook = inside.forward("a").register_forward_pre_hook(end)
        assert await texts_of(client, [body("the cat"), body("x"), body("x", "b")]) == [503] * 3
        assert (await client.get("/health")).status_code == 503
        hook.remove()

    inside.run(scenario)


def test_logits_that_are_not_finite_fail_alone(inside: Inside) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        weight = inside.forward("a").weight
        spoilt = inside.service.models["a"].engine.tokenizer("7", add_special_tokens=False)  # type: ignore[union-attr]
        good = body("the cat", temperature=0, max_tokens=3)
        [alone] = await texts_of(client, [good])
        with torch.no_grad():
            weight[spoilt["input_ids"]] = float("nan")
        assert await texts_of(client, [good, body("the 7")]) == [alone, 500]
        response = await client.post("/v1/completions", json=body("the 7"))
        assert "NaN or infinite" in response.json()["error"]["message"]

    inside.run(scenario)


def test_first_texts_of_streams_are_sent_before_the_batch_continues(inside: Inside) -> None:
    """Whoever joins a running batch does not wait for its next step to see a first text."""

    async def scenario(client: httpx.AsyncClient) -> None:
        hook = inside.forward("a").register_forward_pre_hook(inside.note_pass)
        inside.service.worker.sending = 60.0  # on a busy machine too
        asked = {"stream": True, "max_tokens": 60, "regex": "[a-z ]{200}"}
        going = []
        for seed in range(6):
            steps = inside.happened.count("step")
            request = client.post("/v1/completions", json=body("the cat", **asked | {"seed": seed}))
            going.append(asyncio.create_task(request))
            while inside.happened.count("step") < steps + 3:
                await asyncio.sleep(0.001)
        assert [(await each).status_code for each in going] == [200] * 6
        hook.remove()

    inside.run(scenario)
    for seed in "012345":
        before = inside.happened[: inside.happened.index(seed)]
        passes = [each for each in before if not each.isdigit()]
        assert passes[-1] == "prompts", (seed, before[-9:])
        assert inside.happened.count(seed) > 9, seed


def test_a_text_that_is_being_encoded_never_stops_the_event_loop(inside: Inside) -> None:
    """Short texts are encoded in the event loop, but only while no other text is encoded."""

    async def scenario(client: httpx.AsyncClient) -> None:
        asked, encoding = [body("the cat"), body("a dog " * 15)], inside.service.admission.encoding
        expected = [*await texts_of(client, asked[:1]), *await texts_of(client, asked[1:])]
        with encoding:
            going = asyncio.create_task(texts_of(client, asked))
            for _ in range(3):
                assert (await client.get("/health")).status_code == 200
            assert not going.done()
        assert await going == expected

    inside.run(scenario)


def test_a_choice_that_does_not_fit_is_refused_by_the_engine(inside: Inside) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        fields = {"choices": ["a very long choice"], "max_tokens": 2}
        response = await client.post("/v1/completions", json=body("a", **fields))
        assert response.status_code == 400
        assert response.json()["error"]["param"] == "choices"

    inside.run(scenario)


def test_a_bug_is_answered_in_the_form_of_the_interface(inside: Inside) -> None:
    async def scenario(client: httpx.AsyncClient) -> None:
        model = inside.service.models["a"]
        assert isinstance(model, TextModel)
        tokenizer, model.engine.tokenizer = model.engine.tokenizer, None  # type: ignore[assignment]
        response = await client.post("/v1/completions", json=body("a"))
        model.engine.tokenizer = tokenizer
        assert response.status_code == 500
        assert response.json()["error"]["message"] == "the request failed: a bug in llmkit"
        assert await texts_of(client, [body("a")]) != [500]

    inside.run(scenario)
    assert any(each.startswith("a bug in llmkit: /v1/completions") for each in inside.warnings)


def test_a_step_that_never_ends_is_trouble(talker: Path, base: Path) -> None:
    inside = Inside(talker, base, "serve.max_seconds=0.2")

    async def scenario(client: httpx.AsyncClient) -> None:
        going = asyncio.Event()
        loop = asyncio.get_running_loop()

        def block(*_: Any) -> None:
            asyncio.run_coroutine_threadsafe(going.wait(), loop).result()

        hook = inside.forward("a").register_forward_pre_hook(block)
        assert (await client.post("/v1/completions", json=body("a"))).status_code == 504
        while (response := await client.get("/health")).status_code == 200:
            await asyncio.sleep(0.01)
        assert "more than 0.2 s" in response.json()["reason"]
        hook.remove()
        going.set()
        while (await client.get("/health")).status_code == 503:
            await asyncio.sleep(0.01)

    inside.run(scenario)
