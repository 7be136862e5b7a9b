"""A model that is split across two processes is served by rank 0, with the texts of one process."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.harness import Server, Trial
from tests.serving.conftest import language_model, started

REQUESTS: list[dict[str, Any]] = [
    {"prompt": "the cat", "seed": 1, "max_tokens": 20},
    {"prompt": ["a dog", "how far"], "seed": 2, "max_tokens": 9, "n": 2, "top_k": 5},
    {"prompt": "a mat", "temperature": 0, "max_tokens": 12, "stop": ["e"]},
    {"prompt": "the little", "seed": 4, "max_tokens": 12, "choices": ["a dog", "a cat"]},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return language_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def pair(trials: Server, model: Path) -> tuple[str, list[Trial]]:
    """The address of a server, and its two processes."""
    line = ("serve", "--model", model, "model.tp_plan=auto", "--port", 0)
    both = trials.start_processes(2, *line)
    said = both[0].until(r"serving at http://\S+\n")
    return re.findall(r"serving at (http://\S+)\n", said)[0], both


def asked(url: str, body: Mapping[str, Any]) -> Any:
    answer = httpx.post(f"{url}/v1/completions", json=dict(body))
    return [choice["text"] for choice in answer.json()["choices"]]


def test_texts_are_those_of_one_process_alone_and_together(
    trials: Server, model: Path, pair: tuple[str, list[Trial]]
) -> None:
    url, both = pair
    alone = started(trials, "--model", model)
    expected = [asked(alone.url, body) for body in REQUESTS]
    assert alone.stop().code == 0
    assert [asked(url, body) for body in REQUESTS] == expected
    with ThreadPoolExecutor(len(REQUESTS)) as several:
        assert list(several.map(lambda body: asked(url, body), REQUESTS)) == expected
    for trial in both:
        trial.send(signal.SIGTERM)
    assert [trial.end().code for trial in both] == [0, 0]


@pytest.mark.slow
def test_a_lost_process_makes_the_server_unhealthy_and_ends_it_with_its_code(
    pair: tuple[str, list[Trial]],
) -> None:
    url, both = pair
    assert httpx.get(f"{url}/health").status_code == 200
    assert both[1].end(signal.SIGKILL).code == -9
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "the cat", "max_tokens": 5})
    assert answer.status_code >= 500
    assert httpx.get(f"{url}/health").status_code == 503
    assert both[0].end(signal.SIGTERM).code == 71


def test_several_processes_serve_nothing_else(trials: Server, model: Path) -> None:
    cases = (("--model", model), ("--model", model, "--model", f"b={model}", "model.tp_plan=auto"))
    for line in cases:
        ends = [trial.end() for trial in trials.start_processes(2, "serve", *line, "--port", 0)]
        assert [ended.code for ended in ends] == [78, 78]
        assert "can serve only one causal model" in ends[0].err
