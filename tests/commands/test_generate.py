"""`llmkit generate` and `llmkit chat`, as a shell sees them."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.cli import app
from llmkit.models import build, tokenizer
from tests.harness import Server
from tests.jobs import SHARED, WORDS

from .conftest import Run

STORIES = SHARED / "models" / "tinystories-656k"


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with random weights and a tokenizer with a chat template."""
    bpe = tokenizer.train_bpe([" ".join(WORDS)] * 3, 300)
    bpe.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    made = build.causal_model(build.model_config("llama", shape, len(bpe), 128, special), seed=0)
    path = tmp_path_factory.mktemp("model")
    made.save_pretrained(path)
    bpe.save_pretrained(path)
    return path


@pytest.fixture
def generate(
    model: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command in this process; `stdin` is a pipe."""

    def run(*arguments: object, stdin: str = "", command: str = "generate") -> tuple[int, str, str]:
        pipe = io.TextIOWrapper(io.BytesIO(stdin.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", pipe)
        given = [str(argument) for argument in arguments]
        if "--model" not in given:
            given = ["--model", str(model), *given]
        code = app.run_command([command, *given])
        return code, *capsys.readouterr()

    return run


Generate = Callable[..., tuple[int, str, str]]


def rows(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_line_of_json_holds_what_the_contract_says(generate: Generate, model: Path) -> None:
    settings = ("generation.max_new_tokens=5", "generation.seed=3")
    code, out, _ = generate("--prompt", "the cat", "--json", *settings)
    (row,) = rows(out)
    assert code == 0
    keys = ["prompt", "text", "index", "seed", "tokens", "finish_reason", "logprob"]
    assert list(row) == keys
    assert (row["prompt"], row["index"], row["seed"]) == ("the cat", 0, 3)
    assert row["finish_reason"] == "length"
    assert len(row["tokens"]) == 5
    decoded = AutoTokenizer.from_pretrained(model).decode(row["tokens"], skip_special_tokens=True)
    assert row["text"] == decoded
    assert row["logprob"] < 0


def test_prompts_come_from_options_a_file_or_a_pipe_alike(
    generate: Generate, tmp_path: Path
) -> None:
    prompts = ["the cat", "a dog", "home"]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in prompts))
    given = [
        generate("--json", *(part for p in prompts for part in ("--prompt", p))),
        generate("--json", "--prompts-file", tmp_path / "p.jsonl"),
        generate("--json", stdin="\n".join(prompts)),
    ]
    assert [code for code, _, _ in given] == [0, 0, 0]
    assert len({out for _, out, _ in given}) == 1
    assert [row["prompt"] for row in rows(given[0][1])] == prompts


def test_plain_text_is_the_prompt_and_what_follows(generate: Generate) -> None:
    settings = ("generation.max_new_tokens=6",)
    _, lines, _ = generate("--json", "--prompt", "the cat", "--prompt", "a", *settings)
    one, two = rows(lines)
    _, out, _ = generate("--prompt", "the cat", "--prompt", "a", *settings)
    assert out == f"the cat{one['text']}\n\n---\na{two['text']}\n"
    _, streamed, _ = generate("--prompt", "the cat", *settings)
    assert streamed == f"the cat{one['text']}\n"


def test_an_empty_prompt_begins_with_the_begin_token(generate: Generate) -> None:
    code, out, _ = generate("--prompt", "", "--json")
    assert code == 0
    assert rows(out)[0]["prompt"] == ""


def test_explanations_are_in_the_json_and_in_a_table(generate: Generate) -> None:
    arguments = ("--prompt", "the", "--explain", 2, "generation.max_new_tokens=3")
    (row,) = rows(generate(*arguments, "--json")[1])
    assert [len(step["likeliest"]) for step in row["steps"]] == [2, 2, 2]
    assert [step["id"] for step in row["steps"]] == row["tokens"]
    assert "likeliest" in generate(*arguments)[1]


def _copy(model: Path, to: Path, name: str, **changes: Any) -> Path:
    to.mkdir()
    for path in model.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    settings = json.loads((to / name).read_text()) | changes
    (to / name).write_text(json.dumps(settings))
    return to


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--prompt", "a", "generation.temperature=-1"], 78, "generation.temperature"),
        (["--prompt", "a", "generation.top_p=1.5"], 78, "generation.top_p"),
        (["--prompt", "a", 'generation.stop=[""]'], 78, "generation.stop"),
        (["--prompt", "a", "--system", "x"], 78, "needs a chat"),
        (["--prompt", "a", "generation.batch_size=3"], 78, "generation.micro_batch_size=3"),
        (["--prompt", "a " * 200], 65, "truncate_prompt"),
        ([], 66, "stdin holds no prompt"),
        (["--prompts-file", "none.txt"], 66, "none.txt"),
        (["--prompt", "a", "--model", "./none"], 66, "no model directory"),
    ],
)
def test_a_fault_is_reported_before_a_model_is_loaded(
    arguments: list[str], code: int, said: str, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    found, out, err = generate(*arguments)
    assert (found, out) == (code, "")
    assert said in err


def test_a_classifier_is_refused(generate: Generate, model: Path, tmp_path: Path) -> None:
    changed = {"architectures": ["LlamaForSequenceClassification"]}
    classifier = _copy(model, tmp_path / "classifier", "config.json", **changed)
    code, _, err = generate("--model", classifier, "--prompt", "a")
    assert code == 65
    assert "is a LlamaForSequenceClassification, not a causal language model" in err


def test_an_empty_prompt_needs_a_begin_token(
    generate: Generate, model: Path, tmp_path: Path
) -> None:
    bare = _copy(model, tmp_path / "bare", "tokenizer_config.json", bos_token=None)
    code, _, err = generate("--model", bare, "--prompt", "")
    assert code == 65
    assert "no begin-of-text token" in err


def test_a_long_prompt_is_cut_from_the_left_when_asked_and_it_is_said(generate: Generate) -> None:
    long = "a " * 200
    cut = "generation.truncate_prompt=true"
    code, out, err = generate("--prompt", long, "--json", cut, "generation.max_new_tokens=28")
    assert code == 0
    assert rows(out)[0]["prompt_tokens_cut"] > 0
    assert "cut 1 prompt from the left" in err


def test_a_dry_run_counts_prompts_and_loads_nothing(
    generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    code, out, _ = generate("--dry-run", "--json", stdin="a\n\nb c\n")
    assert code == 0
    found = json.loads(out)
    assert (found["prompts"], found["blank_lines"], found["samples"]) == (2, 1, 2)


def test_a_job_resumes_with_the_same_settings_only(generate: Generate, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    job = ("--output", out, "--json", "generation.max_new_tokens=6")
    ten = "\n".join(f"the {n}" for n in range(10))
    assert generate(*job, stdin=ten)[0] == 0
    whole = out.read_bytes()
    out.write_bytes(whole[: len(whole) // 2])
    code, summary, _ = generate(*job, stdin=ten)
    assert code == 0
    assert 0 < json.loads(summary)["samples_before"] < 10
    assert out.read_bytes() == whole
    code, _, err = generate(*job, "generation.temperature=0.5", stdin=ten)
    assert code == 78
    assert "generation.temperature was 0.8, is now 0.5" in err
    assert generate(*job, stdin="other\n" + ten)[0] == 78
    assert out.read_bytes() == whole
    assert generate(*job, stdin=ten + "\nand one more")[0] == 0
    assert out.read_bytes().startswith(whole)
    assert len(rows(out.read_text())) == 11


def test_a_killed_job_resumes_to_the_file_of_an_uninterrupted_one(
    model: Path,
    tmp_path: Path,
    trials: Server,
    generate: Generate,
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"the cat {n}\n" for n in range(200)))
    settings = ("generation.max_new_tokens=40", "generation.micro_batch_size=2")
    job = ["--model", model, "--prompts-file", prompts, "--quiet", *settings, "--output"]
    assert generate(*job, tmp_path / "whole.jsonl")[0] == 0
    out = tmp_path / "killed.jsonl"
    process = trials.start("generate", *job, out)
    process.until_lines(out, 30)
    process.end(signal.SIGKILL)
    assert 30 <= out.read_bytes().count(b"\n") < 200
    assert generate(*job, out)[0] == 0
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_two_processes_write_what_one_does(
    model: Path, tmp_path: Path, llmkit: Run, generate: Generate
) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"the {'cat ' * (n % 5)}{n}\n" for n in range(21)))
    job = ["--model", model, "--prompts-file", prompts, "generation.num_return_sequences=2"]
    settings = ["generation.max_new_tokens=8", "generation.micro_batch_size=3", "--output"]
    assert generate(*job, *settings, tmp_path / "one.jsonl")[0] == 0
    done = llmkit("generate", *job, *settings, tmp_path / "two.jsonl", processes=2)
    assert done.returncode == 0, done.stderr
    one, two = (
        [(r["prompt"], r["index"], r["text"], r["tokens"]) for r in rows(path.read_text())]
        for path in (tmp_path / "one.jsonl", tmp_path / "two.jsonl")
    )
    assert one == two


@pytest.mark.skipif(not STORIES.is_dir(), reason="the shared test data is not here")
def test_a_pipe_in_and_a_pipe_out(environment: dict[str, str], tmp_path: Path) -> None:
    command = f"{sys.executable} -m llmkit generate --model {STORIES} --json"
    shown = f"echo 'Once upon a time' | {command} | {sys.executable} -m json.tool"
    done = subprocess.run(["sh", "-c", shown], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["prompt"] == "Once upon a time"
    (tmp_path / "p.txt").write_text("Once upon a time\n" * 40)
    head = f"{command} --prompts-file {tmp_path / 'p.txt'} generation.max_new_tokens=4 | head -1"
    done = subprocess.run(["sh", "-c", head], env=environment, capture_output=True, check=True)
    assert json.loads(done.stdout)["index"] == 0
    assert done.stderr == b""


def test_a_chat_prompt_is_put_into_the_template(generate: Generate, model: Path) -> None:
    greedy = ("generation.do_sample=false", "generation.max_new_tokens=6")
    arguments = ("--prompt", "hi", "--chat", "--system", "be kind", "--json", *greedy)
    (row,) = rows(generate(*arguments)[1])
    reader, writer = (
        AutoTokenizer.from_pretrained(model),
        AutoModelForCausalLM.from_pretrained(model),
    )
    ids = torch.tensor([reader("system: be kind\nuser: hi\nassistant: ")["input_ids"]])
    made = writer.generate(ids, do_sample=False, max_new_tokens=6, pad_token_id=0)
    assert row["tokens"] == made[0, ids.shape[1] :].tolist()


def test_a_conversation_has_a_history_and_commands(generate: Generate, tmp_path: Path) -> None:
    said = [
        "hello", "/set temperature 0.5", "/set temperature -1", "/set colour blue", "/nothing",
        "and you?", f"/save {tmp_path / 'talk.json'}", f"/save {tmp_path / 'talk.json'}", "/help",
        "/reset", "again", f"/save {tmp_path / 'again.json'}", f"/save {tmp_path / 'mine'}",
    ]  # fmt: skip
    (tmp_path / "mine").write_text("precious")
    arguments = ("--system", "be kind", "generation.max_new_tokens=5")
    code, out, err = generate(*arguments, stdin="\n".join(said), command="chat")
    assert code == 0
    talk = json.loads((tmp_path / "talk.json").read_text())
    assert [m["role"] for m in talk] == ["system", *["user", "assistant"] * 2]
    assert [m["content"] for m in talk if m["role"] == "user"] == ["hello", "and you?"]
    answers = [m["content"] for m in talk if m["role"] == "assistant"]
    again = json.loads((tmp_path / "again.json").read_text())
    assert [m["role"] for m in again] == ["system", "user", "assistant"]
    assert out == "".join(f"{answer}\n" for answer in [*answers, again[-1]["content"]])
    assert "temperature is still 0.5" in err
    assert "'colour' is not a setting of a conversation" in err
    assert "the file exists already" in err
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_conversation_that_grew_too_long_says_so_and_continues(generate: Generate) -> None:
    said = ["a " * 120, "hi"]
    code, out, err = generate("generation.max_new_tokens=3", stdin="\n".join(said), command="chat")
    assert code == 0
    assert "the context holds 128" in err
    assert len(out.splitlines()) == 1


def test_a_model_without_a_template_does_not_chat(
    generate: Generate, model: Path, tmp_path: Path
) -> None:
    plain = _copy(model, tmp_path / "plain", "config.json")
    (plain / "chat_template.jinja").unlink()
    code, _, err = generate("--model", plain, "--prompt", "a", "--chat")
    assert code == 78
    assert "no chat template" in err


@pytest.fixture
def base(model: Path, tmp_path: Path) -> Path:
    """The model without a chat template."""
    plain = _copy(model, tmp_path / "base", "config.json")
    (plain / "chat_template.jinja").unlink()
    return plain


def test_a_base_model_continues_one_running_text(
    generate: Generate, base: Path, tmp_path: Path
) -> None:
    greedy = ("generation.do_sample=false", "generation.max_new_tokens=6", "seed=3")
    saved = tmp_path / "text.txt"
    said = ["the cat", "and a dog", "", f"/save {saved}", "/reset", "the cat", "/quit", "never"]
    code, out, err = generate("--model", base, *greedy, stdin="\n".join(said), command="chat")
    assert code == 0
    assert "continues your text and does not answer" in err
    assert "llmkit finetune train.objective=completion" in err
    first, second, third, again = out.removesuffix("\n").split("\n")
    assert again == first
    assert saved.read_text() == f"the cat{first}\nand a dog{second}{third}\n"
    for begin, text in (
        ("the cat", first),
        (f"the cat{first}\nand a dog", second),
        (f"the cat{first}\nand a dog{second}", third),
    ):
        (row,) = rows(generate("--model", base, "--prompt", begin, "--json", *greedy)[1])
        assert row["text"] == text


def test_a_running_text_that_outgrows_the_context_is_cut(generate: Generate, base: Path) -> None:
    code, out, err = generate("--model", base, "generation.max_new_tokens=3",
                              stdin="a " * 200, command="chat")  # fmt: skip
    assert code == 0
    assert "no longer fit the context" in err
    assert out


def test_a_base_model_reads_no_system_message(generate: Generate, base: Path) -> None:
    code, _, err = generate("--model", base, "--system", "be kind", command="chat")
    assert code == 78
    assert "type it as text" in err


def test_a_full_disk_behind_stdout_is_reported(model: Path, trials: Server) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    done = trials.run("generate", "--model", model, "--prompt", "a", stdout="/dev/full")
    assert done.code == 73
    assert "cannot write to stdout" in done.err
    assert "Traceback" not in done.err
