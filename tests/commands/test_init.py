"""`llmkit init`: a config for the user's own files, that the command takes as it is."""

from __future__ import annotations

import json
import os
import pty
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.cli.app import run_command
from llmkit.config.starters import STARTERS
from llmkit.models import build, classifier
from llmkit.models import tokenizer as tokenizers
from llmkit.models.classifier import ClassifierHead
from tests.jobs import WORDS


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "my reviews.csv"
    lines = [f"{n},review number {n},{'good' if n % 2 else 'bad'}" for n in range(40)]
    path.write_text("\n".join(["id,review,stars", *lines]) + "\n")
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model of each kind that the jobs need."""
    shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    made = {name: tmp_path_factory.mktemp(name) for name in ("causal", "classifier")}
    bpe = tokenizers.train_bpe([" ".join(WORDS)] * 3, 300)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    config = build.model_config("llama", shape, len(bpe), 128, special)
    build.causal_model(config, seed=0).save_pretrained(made["causal"])
    bpe.save_pretrained(made["causal"])
    bpe = tokenizers.train_bpe_with_frame([" ".join(WORDS)] * 3, 300)
    config = classifier.new_config("bert", shape, bpe, 24)
    head = ClassifierHead("single_label_classification", ("bad", "good"))
    head.describe(config, bpe.pad_token_id)
    build.classifier(config, seed=0).save_pretrained(made["classifier"])
    bpe.save_pretrained(made["classifier"])
    return made


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run_command(arguments)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_columns_of_a_table_are_filled_in(capsys, rows: Path) -> None:
    rows.write_text(rows.read_text().replace("id,review,stars", "id,text,label"))
    code, out, _ = told(capsys, "init", "classifier", "--csv", rows.name, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["filled"]["data.text_column"] == "text"
    assert found["filled"]["data.label_column"] == "label"
    code, out, err = told(capsys, "finetune", found["config"], "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["rows"] == 40


def table_of(kind: str) -> tuple[str, ...]:
    """The options with which a job gets data of a kind."""
    return {"text": ("--text", "corpus.txt"), "rows": ("--csv", "my reviews.csv"),
            "chats": ("--csv", "chats.jsonl"), "pairs": ("--csv", "pairs.jsonl"),
            "words": ("--csv", "words.conll"), "questions": ("--csv", "questions.jsonl"),
            "sources": ("--csv", "sources.csv"), "articles": ("--csv", "articles.jsonl"),
            "": ()}[kind]  # fmt: skip


@pytest.mark.parametrize(
    ("job", "kind"),
    [("pretrain", "text"), ("pretrain", "rows"), ("masked", "text"), ("next-sentence", "text"),
     ("translation", "sources"), ("summarization", "articles"), ("mixture", "text"),
     ("mixture", "rows"), ("experts", "rows"), ("classifier", "rows"), ("tagger", "words"),
     ("question-answering", "questions"),
     ("completion", "chats"), ("preference", "pairs"), ("generate", ""), ("predict", "rows"),
     ("evaluate", "text"), ("evaluate-labels", "rows")],
)  # fmt: skip
def test_the_next_command_runs_as_it_is(capsys, rows: Path, models, job, kind) -> None:
    Path("corpus.txt").write_text("the cat sat on a mat. " * 200)
    Path("words.conll").write_text("".join(f"Bob B-X\nran O\n{n} O\n\n" for n in range(9)))
    rows_of = ({"question": f"Who is {n}?", "context": f"Bob is {n}.", "answers": {"text": ["Bob"]}}
               for n in range(9))  # fmt: skip
    Path("questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows_of))
    Path("chats.jsonl").write_text('{"prompt": "2+2?", "response": "4"}\n' * 9)
    Path("pairs.jsonl").write_text('{"prompt": "2+2?", "chosen": "4", "rejected": "5"}\n' * 9)
    Path("sources.csv").write_text("source,target\n" + "one,eins\ntwo,zwei\n" * 9)
    articles = ({"id": n, "article": f"{n} words", "summary": f"{n}"} for n in range(9))
    Path("articles.jsonl").write_text("".join(json.dumps(row) + "\n" for row in articles))
    Path("runs").mkdir()
    needs = STARTERS[job].needs_model
    model = models["classifier" if job in ("predict", "evaluate-labels") else "causal"]
    given = ("--model", str(model)) if needs else ()
    code, out, err = told(
        capsys, "init", job, *table_of(kind), *given, "-o", "my own.yaml", "--json"
    )
    assert code == 0, err
    command = shlex.split(json.loads(out)["next"])
    assert command[0] == "llmkit"
    code, _, err = told(capsys, *command[1:])
    assert code == 0, err


def test_the_next_command_has_examples_of_what_is_missing(capsys, rows: Path) -> None:
    for job, starter in STARTERS.items():
        _, out, _ = told(capsys, "init", job, "--json")
        found = json.loads(out)
        assert ("--model runs/mine" in found["next"]) is starter.needs_model
        assert starter.data in found["next"]
        assert ("notes" in found) is (job in ("mixture", "experts"))


def test_the_comments_name_the_config_and_its_run(capsys, rows: Path) -> None:
    told(capsys, "init", "completion", "--csv", rows.name, "--model", "owner/name", "-o", "x.yaml")
    text = Path("x.yaml").read_text()
    assert text.startswith("# A starting point")
    assert "#   llmkit finetune x.yaml --dry-run\n" in text
    assert "#   llmkit chat --model runs/x\n" in text
    assert "\noutput_dir: runs/x\n" in text


def commands_in(path: Path) -> list[list[str]]:
    """The commands in the comments of a config."""
    lines = path.read_text().splitlines()
    return [shlex.split(line[1:])[1:] for line in lines if line.startswith("#   llmkit ")]


def test_experts_of_the_users_domains_have_a_command_each(capsys, rows: Path) -> None:
    for name in ("my law.txt", "poems.txt", "code.txt"):
        Path(name).write_text(f"the words of {name}. " * 200)
    given = ("--text", "my law.txt", "--text", "poems.txt", "--text", "code.txt")
    code, out, err = told(capsys, "init", "experts", *given, "--json")
    assert code == 0, err
    seed, *branches, merge, evaluate, generate = commands_in(Path("experts.yaml"))
    names = ["my_law", "poems", "code"]
    assert seed == ["pretrain", "experts.yaml"]
    assert branches == [
        ["pretrain", "experts.yaml", "--model", "runs/seed", "--expert", n, "-o", f"runs/{n}"]
        for n in names
    ]
    assert [each for each in merge if "=" in each] == [f"{n}=runs/{n}" for n in names]
    assert evaluate[:2] == ["evaluate", "experts.yaml"]
    assert generate[0] == "generate"
    found = json.loads(out)["filled"]
    assert found["data.mixture.my_law.files"] == "my law.txt"
    code, out, err = told(capsys, *seed, "--dry-run", "--json")
    assert code == 0, err
    assert json.loads(out)["run_dir"] == "runs/seed"


def test_a_seed_that_begins_with_a_model_keeps_the_commands_of_its_experts(
    capsys, rows: Path, models
) -> None:
    given = ("--text", "a.txt", "--text", "b.txt", "--model", str(models["causal"]))
    for name in ("a.txt", "b.txt"):
        Path(name).write_text("the cat sat on a mat. " * 200)
    assert told(capsys, "init", "experts", *given)[0] == 0
    seed, first, *_ = commands_in(Path("experts.yaml"))
    assert first[2:6] == ["--model", "runs/seed", "--expert", "a"]
    code, _, err = told(capsys, *seed, "--dry-run", "data.block_size=32")
    assert code == 0, err


def test_one_text_has_its_domains_found(capsys, rows: Path) -> None:
    words = "the cat sat on a mat and saw how far the little dog had run".split()
    Path("corpus.txt").write_text("\n\n".join(" ".join(words[n % 7 :]) for n in range(200)))
    code, out, err = told(capsys, "init", "experts", "--text", "corpus.txt", "--json")
    assert code == 0, err
    assert "blank lines" in json.loads(out)["notes"][0]
    seed, *branches, merge, _, _ = commands_in(Path("experts.yaml"))
    names = [f"domain-{n}" for n in range(4)]
    assert [each[5] for each in branches] == names
    assert [each for each in merge if "=" in each] == [f"{n}=runs/{n}" for n in names]
    assert "mixture:" not in Path("experts.yaml").read_text().replace("of mixture:", "")
    code, out, err = told(capsys, *seed, "--dry-run", "--json")
    assert code == 0, err
    assert list(json.loads(out)["data"]["domains"]) == names


def test_columns_that_are_not_clear_are_left_to_the_user(capsys, rows: Path) -> None:
    rows.write_text("a,b,c\n" + "one text,another text,a third text\n" * 9)
    code, out, _ = told(capsys, "init", "classifier", "--csv", rows.name, "--json")
    assert code == 0
    assert "columns" in json.loads(out)["notes"][0]
    assert "my reviews.csv" in Path("classifier.yaml").read_text()


def test_an_existing_file_is_never_replaced(capsys, rows: Path) -> None:
    Path("pretrain.yaml").write_text("mine")
    assert told(capsys, "init", "pretrain")[0] == 73
    assert Path("pretrain.yaml").read_text() == "mine"
    assert told(capsys, "init", "pretrain", "-o", "other.yaml")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ((), 2, "pass one of pretrain"),
        (("clasifier",), 2, "llmkit init classifier"),
        (("pretrain", "--text", "nowhere.txt"), 66, "nowhere.txt"),
        (("pretrain", "--model", "./nowhere"), 66, "no model directory"),
        (("generate", "--text", "my reviews.csv"), 2, "takes no files"),
    ],
)
def test_what_does_not_fit_is_refused(capsys, rows: Path, arguments, code, said) -> None:
    found, _, err = told(capsys, "init", *arguments)
    assert (found, said in err) == (code, True), err
    assert not list(Path().glob("*.yaml"))


def answered(answers: bytes) -> tuple[int, str]:
    """The exit code of `llmkit init` on a terminal where this is typed, and what it shows there."""
    ours, terminal = pty.openpty()
    os.write(ours, answers)
    done = subprocess.run(
        [sys.executable, "-m", "llmkit", "init"],
        stdin=terminal, stdout=subprocess.DEVNULL, stderr=terminal, check=False,
    )  # fmt: skip
    os.close(terminal)
    shown = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return done.returncode, shown


def test_a_terminal_is_asked(rows: Path) -> None:
    code, shown = answered(b"classifier\nmy reviews.csv\n")
    assert code == 0, shown
    assert "text_column: review" in Path("classifier.yaml").read_text()


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (b"\x04", "a question was not answered"),
        (b"clasifier\n\n", "did you mean `llmkit init classifier`?"),
        (b"pretrain\n'corpus.txt\n", "close the quote"),
    ],
)
def test_an_answer_that_cannot_be_used_is_refused(rows: Path, answers: bytes, said: str) -> None:
    code, shown = answered(answers)
    assert code == 2, shown
    assert said in shown
    assert not list(Path().glob("*.yaml"))
