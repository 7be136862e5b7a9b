"""Compare `llmkit serve` with `llmkit generate`, transformers' server and `llmkit predict`.

    python scripts/bench/serve.py MODEL [--rounds 3] [--requests 32] [--tokens 100]
                                  [--classifier RUN --csv ROWS [--rows 2000]] [--threads N]

Requests are made by OpenAI's client, in threads of this process. The client itself takes about a
millisecond per request, so the server is also asked with requests that were written beforehand
(`prepared`). The sides take turns: the engine of `generate` in a process that has loaded the model,
the server with all requests at once, and where `transformers serve --continuous-batching` starts,
that server with the same requests, greedy, as it ignores the seed. `--random` replaces the model by
a Llama of 12 layers of 768 units with random weights and the same tokenizer. Then the time to the
first token of an eighth stream while seven run, beside that of an idle server, in steps of the
running streams; and rows per second of 64 clients, with one text or 16 per request, or one
prepared, beside those that `predict` reports. Prints one JSON object: medians, ratios, and how many
texts and labels are equal.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import openai

PROMPTS = (
    "Once upon a time", "The little dog", "One day, Lily", "Tom and his mother went to the",
    "It was", "There was a boy who", "In the garden", "The sun",
)  # fmt: skip
CLIENTS, STREAMS = 64, 8
ROUNDS_OF_STREAMS = 15

GENERATE = """
import json, sys, time
from llmkit.config.load import load_config
from llmkit.inference import generate, prompts
from llmkit.inference.requests import PromptRequest
from llmkit.models.pretrained import open_model
config = load_config("generate", None, [f"model.name_or_path={sys.argv[1]}", *sys.argv[2:]]).config
opened = open_model(sys.argv[1])
engine = generate.engine(config, opened)
sampler = engine.sampler(config.generation)
for line in sys.stdin:
    asked = [PromptRequest(each["prompt"], "", seed=each["seed"]) for each in json.loads(line)]
    began = time.perf_counter()
    encoded = prompts.encode_prompts(asked, opened.tokenizer, opened.config, config.generation, 0)
    made = list(generate.generate_samples(engine, encoded, sampler))
    seconds = time.perf_counter() - began
    tokens = sum(len(sample.tokens) for sample in made)
    print(json.dumps([[sample.text for sample in made], tokens, seconds]), flush=True)
"""


@contextlib.contextmanager
def started(command: list[str], said: str, log: Path) -> Iterator[str]:
    """A server, until it answers; what it said that matches."""
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        while not (found := re.search(said, log.read_text())):
            if process.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            time.sleep(0.1)
        yield found[found.re.groups]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@contextlib.contextmanager
def transformers_server(model: str, log: Path) -> Iterator[str | None]:
    """The URL of transformers' server; None where it cannot be started."""
    port = 8765
    command = ["transformers", "serve", model, "--continuous-batching", "--device", "cpu",
               "--port", str(port), "--cb-num-blocks", "128"]  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=file)
    try:
        url = f"http://localhost:{port}"
        while process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{url}/health", timeout=5).status_code == 200:
                    yield url
                    return
            time.sleep(0.2)
        yield None
    finally:
        process.kill()
        process.wait()


async def prepared(url: str, path: str, bodies: list[dict[str, Any]], clients: int) -> list[Any]:
    """The answers to requests that were written beforehand, from so many connections that each send
    the next as soon as they have an answer; the last item is the seconds that all took."""
    host = httpx.URL(url)
    requests = []
    for body in bodies:
        text = json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {host.host}\r\nContent-Type: application/json\r\n"
        requests.append(f"{head}Content-Length: {len(text)}\r\n\r\n".encode() + text)
    answers: list[Any] = [b""] * len(requests)
    left = iter(range(len(requests)))
    pairs = [await asyncio.open_connection(host.host, host.port) for _ in range(clients)]

    async def client(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in left:
            writer.write(requests[number])
            found = re.search(rb"content-length: (\d+)", await reader.readuntil(b"\r\n\r\n"), re.I)
            assert found is not None
            answers[number] = await reader.readexactly(int(found[1]))
        writer.close()

    began = time.perf_counter()
    await asyncio.gather(*(client(*pair) for pair in pairs))
    return [*map(json.loads, answers), time.perf_counter() - began]


def random_llama(tokenizer: str, place: str) -> str:
    """The directory of a language model with random weights and the tokenizer of another model."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    words = AutoTokenizer.from_pretrained(tokenizer)
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(words), hidden_size=768, num_hidden_layers=12, num_attention_heads=12,
        intermediate_size=2048, max_position_embeddings=512, eos_token_id=words.eos_token_id,
        bos_token_id=words.bos_token_id,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(place)
    words.save_pretrained(place)
    return place


class Completions:
    """Completions of prompts by a server."""

    def __init__(self, url: str, model: str, prompts: list[dict[str, Any]], tokens: int) -> None:
        self.client = openai.OpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=600
        )
        self.url, self.model, self.prompts, self.tokens = url, model, prompts, tokens
        self.pool = ThreadPoolExecutor(len(prompts))

    def one(self, asked: dict[str, Any]) -> tuple[str, int]:
        found = self.client.completions.create(model=self.model, max_tokens=self.tokens, **asked)
        assert found.usage is not None
        return found.choices[0].text, found.usage.completion_tokens

    def run(self) -> tuple[list[str], int, float]:
        """All texts at once, the number of their tokens, and the seconds."""
        began = time.perf_counter()
        found = list(self.pool.map(self.one, self.prompts))
        seconds = time.perf_counter() - began
        return [text for text, _ in found], sum(tokens for _, tokens in found), seconds

    def run_prepared(self) -> float:
        """Tokens per second of all texts at once, without the client's own work."""
        common = {"model": self.model, "max_tokens": self.tokens}
        bodies = [{**common, **asked} for asked in self.prompts]
        *found, seconds = asyncio.run(
            prepared(self.url, "/v1/completions", bodies, len(self.prompts))
        )
        return float(sum(each["usage"]["completion_tokens"] for each in found) / seconds)

    def pieces(self, asked: dict[str, Any], tokens: int) -> Iterator[float]:
        """When each piece of a stream arrives, in seconds after the request."""
        began = time.perf_counter()
        stream = self.client.completions.create(
            model=self.model, max_tokens=tokens, stream=True, **asked
        )
        for chunk in stream:
            if chunk.choices:
                yield time.perf_counter() - began

    def first_tokens(self) -> dict[str, float]:
        """The time to the first token of an idle server and of one that runs other streams, and the
        time of their steps."""
        idle, busy, steps = [], [], []
        for _ in range(ROUNDS_OF_STREAMS):
            idle.append(next(self.pieces(self.prompts[0], 1)))
            others = [self.pieces(each, 400) for each in self.prompts[1:STREAMS]]
            begun = [self.pool.submit(next, other) for other in others]
            for each in begun:
                each.result()
            left = [self.pool.submit(list, other) for other in others]
            busy.append(next(self.pieces(self.prompts[0], 1)))
            for each in left:
                times = each.result()
                steps.append((times[-1] - times[0]) / (len(times) - 1))
        alone, among, step = map(statistics.median, (idle, busy, steps))
        return {"idle": alone, "among": among, "step": step, "steps_more": (among - alone) / step}


def texts_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of generating text."""
    prompts = [{"prompt": PROMPTS[n % len(PROMPTS)], "seed": n} for n in range(arguments.requests)]
    model, rounds = arguments.model, arguments.rounds
    sides = ("generate", "serve", "prepared", "transformers")
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    equal = 0
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        log = Path(place) / "serve.log"
        serve = [sys.executable, "-m", "llmkit", "serve", "--model", f"m={model}", "--port", "0"]
        url = stack.enter_context(started(serve, r"serving at (http\S+)\n", log))
        settings = f"generation.max_new_tokens={arguments.tokens}"
        engine = stack.enter_context(
            subprocess.Popen(
                [sys.executable, "-c", GENERATE, model, settings],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            )
        )  # fmt: skip
        ours = Completions(url, "m", prompts, arguments.tokens)
        for number in range(rounds + 1):
            assert engine.stdin is not None
            assert engine.stdout is not None
            engine.stdin.write(json.dumps(prompts) + "\n")
            engine.stdin.flush()
            expected, tokens, seconds = json.loads(engine.stdout.readline())
            found, served, taken = ours.run()
            own = ours.run_prepared()
            equal = sum(a == b for a, b in zip(expected, found, strict=True))
            if number:
                speeds["generate"].append(tokens / seconds)
                speeds["serve"].append(served / taken)
                speeds["prepared"].append(own)
        first = ours.first_tokens()
        engine.stdin.close()
    with (
        tempfile.TemporaryDirectory() as place,
        transformers_server(model, Path(place) / "log") as url,
    ):
        if url is not None:
            greedy = [{"prompt": each["prompt"]} for each in prompts]
            theirs = Completions(url, model, greedy, arguments.tokens)
            for number in range(rounds + 1):
                _, tokens, seconds = theirs.run()
                if number:
                    speeds["transformers"].append(tokens / seconds)
    median = {name: statistics.median(each) for name, each in speeds.items() if each}
    ratios = {f"serve/{name}": median["serve"] / value for name, value in median.items()}
    ratios["prepared/generate"] = median["prepared"] / median["generate"]
    return {"tokens_per_s": median, "ratios": ratios, "equal": f"{equal} of {len(prompts)}",
            "first_token_s": first}  # fmt: skip


def labels_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The figures of classification."""
    with Path(arguments.csv).open(newline="") as file:
        rows = list(csv.reader(file))[1 : arguments.rows + 1]
    column = max(range(len(rows[0])), key=lambda place: len(rows[0][place]))
    texts = [row[column] for row in rows]
    bodies = [{"model": "c", "input": [text]} for text in texts]
    names = ("serve", "serve_16", "prepared")
    speeds: dict[str, list[float]] = {name: [] for name in ("predict", *names)}
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        given = Path(place) / "rows.jsonl"
        given.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        serve = [sys.executable, "-m", "llmkit", "serve", "--model", f"c={arguments.classifier}",
                 "--port", "0", f"predict.precision={arguments.precision}"]  # fmt: skip
        log = Path(place) / "serve.log"
        url = stack.enter_context(started(serve, r"serving at (http\S+)\n", log))
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

        def labels(some: list[str]) -> list[str]:
            body = {"model": "c", "input": some}
            found: Any = client.post("/classify", body=body, cast_to=object)
            return [each["label"] for each in found["data"]]

        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))

        def served(size: int) -> Callable[[], list[str]]:
            parts = [texts[n : n + size] for n in range(0, len(texts), size)]
            return lambda: [label for part in pool.map(labels, parts) for label in part]

        expected: list[str] = []
        agree = 0.0
        for number in range(arguments.rounds + 1):
            written = Path(place) / f"{number}.jsonl"
            done = subprocess.run(
                [sys.executable, "-m", "llmkit", "predict", "--model", arguments.classifier,
                 "--csv", str(given), "--output", str(written), "--json", "predict.columns=[]",
                 f"predict.precision={arguments.precision}"],
                check=True, capture_output=True, text=True,
            )  # fmt: skip
            expected = [json.loads(line)["label"] for line in written.read_text().splitlines()]
            timed = {"predict": json.loads(done.stdout)["examples_per_second"]}
            for name, size in (("serve", 1), ("serve_16", 16)):
                began = time.perf_counter()
                found = served(size)()
                timed[name] = len(texts) / (time.perf_counter() - began)
                agree = sum(a == b for a, b in zip(expected, found, strict=True)) / len(texts)
            *_, seconds = asyncio.run(prepared(url, "/v1/classify", bodies, CLIENTS))
            timed["prepared"] = len(texts) / seconds
            if number:
                for name, value in timed.items():
                    speeds[name].append(value)
    median = {name: statistics.median(each) for name, each in speeds.items()}
    ratios = {name: median[name] / median["predict"] for name in names}
    return {"rows_per_s": median, "ratios_to_predict": ratios, "equal_labels": agree}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", nargs="?")
    for name, default in (("rounds", 3), ("requests", 32), ("tokens", 100), ("rows", 2000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--random", action="store_true")
    parser.add_argument("--classifier")
    parser.add_argument("--csv")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(arguments.threads)
    found = {}
    with tempfile.TemporaryDirectory() as place:
        if arguments.random:
            arguments.model = random_llama(arguments.model, place)
        if arguments.model:
            found["texts"] = texts_of(arguments)
    if arguments.classifier:
        found["labels"] = labels_of(arguments)
    print(json.dumps({**found, **vars(arguments)}))


if __name__ == "__main__":
    main()
