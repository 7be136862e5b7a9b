"""Arguments that are in the wrong place are answered with what to type instead."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmkit.cli import app
from llmkit.cli.arguments import experts_of
from llmkit.errors import UsageError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs/code").mkdir(parents=True)
    Path("runs/code/run.json").write_text("{}")
    Path("notes.txt").write_text("hello\n")


@pytest.mark.parametrize(
    ("line", "code", "advice"),
    [
        (["merge", "runs/code"], 66, "an expert with `--expert DOMAIN=runs/code`"),
        (["merge", "code=runs/code"], 2, "write `--expert code=runs/code`"),
        (["merge", "runs/a=b"], 66, "`--expert runs/a=b`"),
        (["merge", "missing"], 66, "pass each expert with `--expert DOMAIN=RUN`"),
        (["merge", "seed=1", "runs/code"], 2, "pass each expert with `--expert DOMAIN=RUN`"),
        (["merge", "notes.txt"], 2, "pass each expert with `--expert DOMAIN=RUN`"),
        (["merge", "--expert", "runs/code"], 2, "write `--expert DOMAIN=runs/code`"),
        (["chat", "notes.txt"], 2, "`llmkit generate --prompts-file notes.txt`"),
        (["chat", "hi there"], 66, "pass a model with `--model MODEL`"),
        (["chat", "runs/code"], 66, "pass a model with `--model runs/code`"),
        (["generate", "hi there"], 66, "pass a text to continue with `--prompt 'hi there'`"),
        (["evaluate", "runs"], 66, "pass data with `--text runs`"),
        (["predict", "missing"], 66, "pass data with `--csv PATH`"),
    ],
)
def test_what_is_not_a_config_is_answered_with_its_option(
    line: list[str], code: int, advice: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert app.run_command(line) == code
    assert advice in capsys.readouterr().err


@pytest.mark.parametrize(
    ("pair", "right"),
    [
        ("runs/code", "DOMAIN=runs/code"),
        ("code=", "code=RUN"),
        ("=runs/code", "DOMAIN=runs/code"),
        ("", "DOMAIN=RUN"),
    ],
)
def test_an_incomplete_expert_is_completed(pair: str, right: str) -> None:
    with pytest.raises(UsageError, match="is not DOMAIN=RUN") as fault:
        experts_of([pair])
    assert fault.value.next == f"write `--expert {right}`"


def test_a_run_may_hold_an_equals_sign() -> None:
    assert experts_of(["code=runs/lr=1"]) == [("merge.experts.code", "runs/lr=1")]


@pytest.mark.parametrize(
    "option", [["-o", "A"], ["-oA"], ["--output-dir", "A"], ["--output-dir=A"]]
)
@pytest.mark.parametrize("is_last", [True, False])
def test_the_last_of_an_option_and_its_key_wins_however_the_option_is_written(
    option: list[str], is_last: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["output_dir=B", *option] if is_last else [*option, "output_dir=B"]
    assert app.run_command(["pretrain", *words, "--print-config", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["config"]["output_dir"] == ("A" if is_last else "B")
