"""`llmkit serve` from the command line: what it refuses before it loads, and what it prints."""

from __future__ import annotations

import json
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from transformers import AutoModelForCausalLM

from llmkit.config.schema import ServeConfig
from llmkit.serving.http import address
from tests.harness import Server
from tests.serving.conftest import TEMPLATE, language_model, make_classifier, make_tagger, started

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model with a chat template."""
    return language_model(tmp_path_factory.mktemp("served"), template=TEMPLATE)


def changed(model: Path, to: Path, **settings: Any) -> Path:
    """A copy of a model, with other settings in its config."""
    shutil.copytree(model, to)
    config = json.loads((to / "config.json").read_text()) | settings
    (to / "config.json").write_text(json.dumps(config))
    return to


@pytest.fixture(autouse=True)
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)


def test_a_dry_run_describes_the_models_and_loads_nothing(call: Call, model: Path) -> None:
    found = call("serve", "--model", model, "--model", f"b.2={model}", "--port", 0, "--dry-run")
    assert found["code"] == 0, found["said"]
    assert [each["name"] for each in found["models"]] == [model.name, "b.2"]
    assert found["models"][0]["task"] == "chat"
    assert found["models"][0]["context"] == 128
    assert (found["host"], found["port"], found["api_keys"]) == ("127.0.0.1", 0, 0)


def test_a_run_is_served_under_its_name_and_a_config_names_one_model(
    call: Call,
    model: Path,
    tmp_path: Path,
) -> None:
    shutil.copytree(model, tmp_path / "runs" / "mine" / "final")
    (tmp_path / "runs" / "mine" / "run.json").write_text("{}")
    config = tmp_path / "serve.yaml"
    config.write_text(f"model: {{name_or_path: {tmp_path}/runs/mine}}\nserve: {{port: 0}}\n")
    assert call("serve", config, "--dry-run")["models"][0]["name"] == "mine"
    for given in ("runs/mine", "runs/mine/final", "runs/mine/"):
        found = call("serve", "--model", tmp_path / given, "serve.port=0", "--dry-run")
        assert found["models"][0]["name"] == "mine"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--model", "none/at/all"], 66, "no model directory"),
        (["--model", "a=MODEL", "--model", "a=MODEL"], 2, "two models have the name 'a'"),
        (["--model", "=MODEL"], 78, "is neither RUN nor NAME=RUN"),
        (["--model", "a="], 78, "is neither RUN nor NAME=RUN"),
        (["--model", "MODEL", "--host", "no.such.host.invalid"], 78, "cannot listen on"),
        (["--model", "MODEL", "--port", "70000"], 78, "int in [0, 65535]"),
        (["--model", "MODEL", "--api-key-file", "none.txt"], 66, "none.txt"),
        (["--model", "MODEL", "serve.max_new_tokens=9"], 78, "is below generation.max_new_tokens"),
        (["--model", "MODEL", "generation.num_beams=2"], 78, "generation.num_beams"),
        (["--model", "MODEL", "generation.json_schema=x"], 78, "generation.json_schema"),
        (["--prompt", "a"], 2, "no such option"),
        ([], 2, "try `llmkit serve --model runs/mine"),
    ],
)
def test_a_fault_is_reported_before_a_model_is_loaded(
    arguments: list[str],
    code: int,
    said: str,
    call: Call,
    model: Path,
) -> None:
    given = [each.replace("MODEL", str(model)) for each in arguments]
    found = call("serve", *given, *([] if "--port" in given or not given else ["serve.port=0"]))
    assert found["code"] == code, found["said"]
    assert said in found["said"]


def test_a_port_in_use_is_reported_before_the_model_is_loaded(call: Call, model: Path) -> None:
    with address.open_listener(ServeConfig(port=0)) as taken:
        port = taken.getsockname()[1]
        found = call("serve", "--model", model, "--port", port)
    assert found["code"] == 73
    assert f"port {port} of 127.0.0.1 is in use" in found["said"]
    assert "choose another, such as --port" in found["said"]


@pytest.mark.parametrize("package", ["fastapi", "uvicorn", "prometheus_client"])
def test_a_missing_extra_is_reported_with_the_command_that_installs_it(
    call: Call,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    package: str,
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    began = time.monotonic()
    found = call("serve", "--model", model, "--port", 0)
    assert time.monotonic() - began < 10
    assert found["code"] == 78
    assert f"needs the package {package}, which is not installed" in found["said"]
    assert "fastapi" in found["error"]["next"]
    assert "remove" not in found["error"]["next"]


def test_models_that_cannot_be_served_are_refused(call: Call, model: Path, tmp_path: Path) -> None:
    masked = changed(model, tmp_path / "masked", architectures=["BertForMaskedLM"],
                   model_type="bert", num_attention_heads=2)  # fmt: skip
    found = call("serve", "--model", masked, "--port", 0, "--dry-run")
    assert found["code"] == 65
    assert "is a masked model, which neither continues text nor labels" in found["said"]
    assert "`llmkit generate` fills masks" in found["said"]


def test_a_tagger_of_marked_words_is_refused(call: Call, tmp_path: Path) -> None:
    marked = make_tagger(tmp_path / "tagger", mark_column=["predicate"])
    found = call("serve", "--model", marked, "--port", 0, "--dry-run")
    assert found["code"] == 65
    assert "which a request cannot mark" in found["said"]


def test_a_tokenizer_of_another_model_is_refused(call: Call, model: Path, tmp_path: Path) -> None:
    small = changed(model, tmp_path / "small", vocab_size=200)
    found = call("serve", "--model", small, "--port", 0, "--dry-run")
    assert found["code"] == 65
    assert "has ids up to 299, but the model has 200 embeddings" in found["said"]
    other = make_classifier(tmp_path / "other")
    found = call(
        "serve", "--model", model, f"tokenizer.name_or_path={other}", "serve.port=0", "--dry-run"
    )
    assert found["code"] == 78
    assert "differs from that of" in found["said"]


def test_the_address_is_printed_for_scripts_and_the_figures_at_the_end(
    trials: Server,
    model: Path,
) -> None:
    trial = trials.start("serve", "--model", f"m={model}", "--port", 0, "--json", "--quiet")
    trial.until_lines(trial.stdout, 1)
    first = json.loads(trial.stdout.read_text().splitlines()[0])
    assert first["models"] == [{"name": "m", "task": "chat"}]
    body = {"prompt": "a", "max_tokens": 5, "min_new_tokens": 5}
    assert httpx.post(f"{first['url']}/v1/completions", json=body).status_code == 200
    ended = trial.end(signal.SIGTERM)
    assert ended.code == 0, ended.err
    last = json.loads(ended.out.splitlines()[-1])
    assert (last["command"], last["requests"], last["generated_tokens"]) == ("serve", 1, 5)
    assert ended.err == ""


def test_bf16_is_stated_at_the_start_and_in_each_response(trials: Server, model: Path) -> None:
    running = started(trials, "--model", f"m={model}", "generation.precision=bf16")
    found = running.post("/v1/completions", {"prompt": "a"}).json()
    ended = running.stop()
    assert ended.code == 0
    assert "m  chat, bf16" in ended.err
    assert "may depend on the others of its batch" in ended.err
    assert found["system_fingerprint"].endswith("-bf16")
    assert any("may depend on the others" in each for each in found["warnings"])


def test_an_open_address_without_keys_is_warned_about(trials: Server, model: Path) -> None:
    running = started(trials, "--model", model, "--host", "0.0.0.0")
    assert "everybody who reaches 0.0.0.0 can use the models" in running.trial.said.decode()
    assert running.get("/health").status_code == 200
    assert running.stop().code == 0
