"""`llmkit push` against a hub on this machine: what arrives there, and what each failure says."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard, constants

from llmkit.cli import app
from llmkit.config.schema import Config
from llmkit.storage import atomic
from tests.conftest import MakeRun
from tests.hub import Hub, running_hub
from tests.jobs import ROOT, sign

WEIGHTS = bytes(range(256)) * 400
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS,
         "tokenizer.json": b"{}" * 5000}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


@pytest.fixture
def run(make_run: MakeRun) -> Path:
    """A finished run, with files beside its model that are not of it."""
    directory = make_run()
    finish(directory)
    (directory / "final" / "notes.txt").write_text("mine")
    (directory / "final" / ".secret").write_text("hf_secret")
    return directory


def finish(directory: Path, **files: bytes) -> None:
    """Writes the model of a run."""

    def fill(target: Path) -> None:
        for name, content in {**FILES, **files}.items():
            (target / name).write_bytes(content)

    atomic.commit(directory / "final", fill, {"step": 2})


class Push:
    """Command lines of `llmkit push`: in this process, or as processes of their own."""

    def __init__(
        self, hub: Hub, home: Path, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.hub, self.home, self.patch, self.capsys = hub, home, patch, capsys

    def environment(self, **changes: str) -> dict[str, str]:
        """What sends a process to the hub of the test."""
        own = {
            "HF_ENDPOINT": self.hub.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(self.home),
            "HF_TOKEN": "hf_me",
            "PYTHONPATH": str(ROOT / "src"),
        }
        return {**os.environ, **own, **changes}

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "llmkit", "push", *map(str, arguments)]

    def __call__(self, *arguments: object, **changes: str) -> tuple[int, str, str]:
        """The exit code, stdout and stderr of a command line in this process, in which the library
        of the hub has read its environment already."""
        environment = self.environment(**changes)
        with self.patch.context() as patch:
            patch.setenv("HF_TOKEN", environment["HF_TOKEN"])
            patch.setattr(constants, "ENDPOINT", environment["HF_ENDPOINT"])
            patch.setattr(constants, "HF_HUB_OFFLINE", environment["HF_HUB_OFFLINE"] == "1")
            patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
            patch.setattr(constants, "HF_TOKEN_PATH", str(self.home / "token"))
            code = app.run_command(["push", *map(str, arguments)])
        said = self.capsys.readouterr()
        assert "Traceback" not in said.err
        return code, said.out, said.err

    def json(self, *arguments: object, **changes: str) -> dict[str, Any]:
        """The object that a command line with --yes prints, and its exit code."""
        code, out, _ = self(*arguments, "--yes", "--json", **changes)
        return {**json.loads(out), "code": code}


@pytest.fixture
def push(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Push:
    return Push(hub, tmp_path / "home", monkeypatch, capsys)


def test_exactly_the_files_of_the_model_and_its_card_arrive_in_one_private_commit(
    push: Push, hub: Hub, run: Path
) -> None:
    done = push.json(run, "--repo", "mine")
    repo = hub.repos["me/mine"]
    assert {name: content for name, content in repo.files.items() if name != "README.md"} == FILES
    assert len(repo.commits) == 2
    assert repo.private
    assert {name for name, content in FILES.items() if len(content) > 4096} == {
        name for name in FILES if hashlib.sha256(FILES[name]).hexdigest() in hub.large
    }
    assert (done["code"], done["status"], done["repo"]) == (0, "uploaded", "me/mine")
    assert (done["url"], done["commit"]) == (f"{hub.url}/me/mine", repo.sha)
    assert done["not_uploaded"] == [".secret", "notes.txt"]
    assert {each["name"]: each["size"] for each in done["files"]} == {
        name: len(content) for name, content in repo.files.items()
    }
    assert all(
        each["sha256"] == hashlib.sha256(repo.files[each["name"]]).hexdigest()
        for each in done["files"]
    )


def test_the_card_names_the_model_as_it_is_loaded_from_the_hub(
    push: Push, hub: Hub, run: Path
) -> None:
    push.json(run, "--repo", "team/mine")
    text = hub.repos["team/mine"].files["README.md"].decode()
    assert 'model="team/mine"' in text
    assert ModelCard(text).data.tags == ["llmkit"]


def test_a_card_that_somebody_edited_is_uploaded_as_it_is(push: Push, hub: Hub, run: Path) -> None:
    card = "---\nlicense: mit\n---\n\n# Mine\n\nSee https://example.org/a/b and/or [x](/me/x).\n"
    (run / "final" / "README.md").write_text(card)
    assert push.json(run, "--repo", "mine")["code"] == 0
    assert hub.repos["me/mine"].files["README.md"].decode() == card


def test_the_same_model_again_is_nothing_to_do_and_changes_nothing(
    push: Push, hub: Hub, run: Path
) -> None:
    first = push.json(run, "--repo", "mine")
    before = len(hub.changes)
    again = push.json(run, "--repo", "mine")
    assert (again["status"], again["commit"]) == ("nothing to do", first["commit"])
    assert len(hub.changes) == before
    assert "nothing to do: me/mine holds this" in push(run, "--repo", "mine", "--yes")[2]


def test_a_later_model_is_one_more_commit_of_what_changed(push: Push, hub: Hub, run: Path) -> None:
    push.json(run, "--repo", "mine")
    hub.repos["me/mine"].files["old.bin"] = b"old"
    finish(run, **{"model.safetensors": WEIGHTS[::-1]})
    done = push.json(run, "--repo", "mine")
    repo = hub.repos["me/mine"]
    assert repo.files["model.safetensors"] == WEIGHTS[::-1]
    assert len(repo.commits) == 3
    assert repo.parents[-1] == f"{2:040}"  # refused by the hub if anybody committed meanwhile
    assert [each["name"] for each in done["files"] if each["changed"]] == ["model.safetensors"]
    assert "also holds old.bin" in done["warnings"][0]


def test_a_dry_run_makes_no_request_and_needs_no_token(push: Push, hub: Hub, run: Path) -> None:
    code, _, said = push(run, "--repo", "mine", "--dry-run", HF_TOKEN="", HF_HUB_OFFLINE="1")
    assert code == 0
    assert hub.requests == []
    assert "model.safetensors" in said
    assert "not uploaded: .secret, notes.txt" in said
    assert "private" in said
    assert not (run / "final" / "README.md").exists()


def test_public_is_asked_for_by_an_option(push: Push, hub: Hub, run: Path) -> None:
    assert push.json(run, "--repo", "mine", "--public")["private"] is False
    assert not hub.repos["me/mine"].private
    finish(run, **{"config.json": b'{"model_type": "gpt2"}'})
    refused = push.json(run, "--repo", "mine")
    assert (refused["code"], refused["error"]["kind"]) == (73, "cannot-write")
    assert "is public" in refused["error"]["what"]
    assert len(hub.repos["me/mine"].commits) == 2


def test_without_a_terminal_nothing_is_uploaded_without_yes(
    push: Push, hub: Hub, run: Path
) -> None:
    code, _, said = push(run, "--repo", "mine")
    assert code == 2
    assert "--yes" in said
    assert hub.requests == []


def answered(push: Push, *arguments: object, answer: bytes) -> tuple[int, str]:
    """The exit code and the screen of a command line on a terminal that answers its question."""
    ours, theirs = pty.openpty()
    environment = push.environment(TERM="xterm", COLUMNS="80")
    with subprocess.Popen(
        push.command(*arguments), env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    ) as process:
        os.close(theirs)
        seen, asked = b"", False
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if not select.select([ours], [], [], 1)[0]:
                continue
            try:
                seen += os.read(ours, 4096)
            except OSError:  # the terminal is closed
                break
            if b"[y/N]" in seen and not asked:
                asked = True
                os.write(ours, answer)
        code = process.wait()
    os.close(ours)
    return code, seen.decode()


@pytest.mark.parametrize(("answer", "code"), [(b"y\n", 0), (b"n\n", 130), (b"\n", 130)])
def test_on_a_terminal_the_files_are_shown_and_the_answer_counts(
    push: Push, hub: Hub, run: Path, answer: bytes, code: int
) -> None:
    ended, screen = answered(push, run, "--repo", "mine", answer=answer)
    assert ended == code
    assert screen.index("model.safetensors") < screen.index("Upload 4 files to me/mine?")
    assert screen.index(".secret") < screen.index("Upload 4 files")
    assert ("me/mine" in hub.repos) is (code == 0)


@pytest.mark.parametrize(
    ("token", "said"),
    [("", "not logged in"), ("hf_wrong", "rejects the token"), ("hf_reader", "may only read"),
     ("hf_\u00e4", "rejects the token")],
)  # fmt: skip
def test_a_token_that_is_missing_or_too_weak_is_reported_with_the_way_to_log_in(
    push: Push, hub: Hub, run: Path, token: str, said: str
) -> None:
    done = push.json(run, "--repo", "mine", HF_TOKEN=token)
    assert done["code"] == 73
    assert said in done["error"]["what"]
    assert "hf auth login" in done["error"]["next"]
    assert hub.changes == []


def test_the_token_of_the_login_file_is_used(push: Push, hub: Hub, run: Path) -> None:
    push.home.mkdir()
    (push.home / "token").write_text("hf_me\n")
    assert push.json(run, "--repo", "mine", HF_TOKEN="")["code"] == 0
    (push.home / "token").write_text("hf_wrong\n")
    done = push.json(run, "--repo", "mine", HF_TOKEN="")
    assert done["error"]["where"] == str(push.home / "token")


def test_offline_mode_is_named(push: Push, run: Path) -> None:
    done = push.json(run, "--repo", "mine", HF_HUB_OFFLINE="1")
    assert done["code"] == 69
    assert "HF_HUB_OFFLINE" in done["error"]["what"]


def test_a_repository_of_somebody_else_is_refused(push: Push, hub: Hub, run: Path) -> None:
    assert push.json(run, "--repo", "mine", HF_TOKEN="hf_you")["repo"] == "you/mine"
    done = push.json(run, "--repo", "you/mine")
    assert done["code"] == 73
    assert "me may not write to you/mine" in done["error"]["what"]
    assert "--repo me/mine" in done["error"]["next"]
    assert len(hub.repos["you/mine"].commits) == 2


@pytest.mark.parametrize(
    ("request_", "status", "code", "said"),
    [
        ("GET /api/whoami", 500, 69, "does not answer"),
        ("GET /api/whoami", 0, 69, "does not answer"),
        ("POST /api/repos/create", 403, 73, "may not write"),
        ("POST /api/repos/create", 409, 73, "run the same command again"),
        ("POST /api/repos/create", 500, 69, "does not answer"),
        ("POST /me/mine.git", 403, 73, "may not write"),
        ("PUT /large", 403, 73, "may not write"),
        ("POST .*/commit/", 401, 73, "rejects the token"),
        ("POST .*/commit/", 403, 73, "may not write"),
        ("POST .*/commit/", 412, 73, "run the same command again"),
        ("POST .*/commit/", 500, 69, "does not answer"),
        ("POST .*/commit/", 0, 69, "does not answer"),
        ("POST /api/validate-yaml", 400, 65, "card"),
    ],
)
def test_a_failure_is_reported_and_the_same_command_again_succeeds(
    push: Push, hub: Hub, run: Path, request_: str, status: int, code: int, said: str
) -> None:
    hub.fails(request_, status, error="as the hub says")
    done = push.json(run, "--repo", "mine")
    assert done["code"] == code
    assert said in done["error"]["what"] + done["error"]["next"]
    assert all(len(repo.commits) == 1 for repo in hub.repos.values())
    hub.faults.clear()
    again = push.json(run, "--repo", "mine")
    assert (again["code"], len(hub.repos["me/mine"].commits)) == (0, 2)


def test_a_hub_that_cannot_be_reached_is_code_69(push: Push, run: Path) -> None:
    done = push.json(run, "--repo", "mine", HF_ENDPOINT="http://127.0.0.1:9")
    assert (done["code"], done["error"]["kind"]) == (69, "hub-unreachable")


@pytest.mark.parametrize("status", [500, 0])
def test_an_upload_that_could_not_be_verified_is_reported_as_uploaded(
    push: Push, hub: Hub, run: Path, status: int
) -> None:
    hub.fails(r"GET .*/revision/", status, error="as the hub says")
    done = push.json(run, "--repo", "mine")
    assert done["code"] == 69
    assert done["error"]["kept"] == f"the upload, not verified: commit {hub.repos['me/mine'].sha}"
    assert hub.repos["me/mine"].files["model.safetensors"] == WEIGHTS
    hub.faults.clear()
    assert push.json(run, "--repo", "mine")["status"] == "nothing to do"


def test_a_connection_that_breaks_within_the_weights_is_tried_again(
    push: Push, hub: Hub, run: Path
) -> None:
    hub.fails("PUT /large", 0, times=1)
    assert push.json(run, "--repo", "mine")["code"] == 0
    assert hub.repos["me/mine"].files["model.safetensors"] == WEIGHTS


@pytest.mark.slow
def test_a_hub_that_dies_within_the_weights_is_code_69(push: Push, hub: Hub, run: Path) -> None:
    hub.fails("PUT /large", 0)
    assert push.json(run, "--repo", "mine")["code"] == 69


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_an_upload_that_is_stopped_shows_nothing_and_is_completed_by_the_same_command(
    push: Push, hub: Hub, run: Path, number: int, code: int
) -> None:
    hub.fails("POST .*/commit/", -1, times=1)
    with subprocess.Popen(
        push.command(run, "--repo", "mine", "--yes"), env=push.environment(),
        stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert hub.arrived.wait(60)
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in told
    assert hub.repos["me/mine"].files == {}
    puts = sum("PUT" in each for each in hub.requests)
    hub.released.set()
    assert push.json(run, "--repo", "mine")["code"] == 0
    assert len(hub.repos["me/mine"].commits) == 2
    assert sum("PUT" in each for each in hub.requests) == puts  # the weights were there


def test_a_file_that_the_hub_leaves_behind_is_an_error(push: Push, hub: Hub, run: Path) -> None:
    hub.ignored.append("model.safetensors")
    done = push.json(run, "--repo", "mine")
    assert done["code"] == 73
    assert "did not take model.safetensors" in done["error"]["what"]


Change = Callable[[Path], object]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda run: (run / "run.json").write_text('{"command": "pretrain"}'), 76, "unfinished"),
        (lambda run: (run / "run.json").write_text("{"), 65, "cannot read a file of the run"),
        (lambda run: (run / "final" / "model.safetensors").write_bytes(WEIGHTS[::-1]), 76, "sha"),
        (lambda run: (run / "final" / "config.json").unlink(), 76, "config.json"),
        (lambda run: (run / "final" / "manifest.json").write_text("{}"), 66, "no manifest"),
        (lambda run: (run / "final" / "manifest.json").write_text("{"), 76, "damaged"),
        (lambda run: sign(run / "final", lambda m: m["files"].update(
            {"../run.json": {"size": 1, "sha256": ""}})), 77, "outside"),
        (lambda run: sign(run / "final", lambda m: m["files"].update(
            {"state.json": {"size": 1, "sha256": ""}})), 76, "checkpoint"),
        (lambda run: sign(run / "final", lambda m: m["files"].pop("config.json")), 66, "no model"),
        (lambda run: (run / "final" / "README.md").write_text("see /home/me/data/x.csv"), 65,
         "/home/me/data/x.csv"),
        (lambda run: (run / "final" / "README.md").write_text("| loss | NaN |"), 79, "NaN"),
        (lambda run: (run / "final" / "README.md").write_text(
            "---\nmodel-index: [\n---\n"), 65, "metadata"),
        (lambda run: (run / "final" / "README.md").write_text(
            "---\nscore: .nan\n---\n"), 79, "metadata"),
    ],
)  # fmt: skip
def test_what_is_unfinished_damaged_foreign_or_private_is_refused_before_any_change(
    push: Push, hub: Hub, run: Path, change: Change, code: int, said: str
) -> None:
    change(run)
    done = push.json(run, "--repo", "mine")
    assert done["code"] == code, done
    assert said in done["error"]["what"]
    assert done["error"]["next"]
    assert hub.changes == []


def test_a_run_that_is_used_by_another_process_is_refused(push: Push, hub: Hub, run: Path) -> None:
    with (run / ".lock").open("w") as file:
        assert atomic.try_lock(file)
        assert push.json(run, "--repo", "mine")["code"] == 80
    assert hub.changes == []


def test_the_directory_of_the_model_alone_is_enough(
    push: Push, hub: Hub, run: Path, tmp_path: Path
) -> None:
    (run / "final").rename(tmp_path / "alone")
    missing = push.json(tmp_path / "alone", "--repo", "mine")
    assert (missing["code"], "no card" in missing["error"]["what"]) == (66, True)
    (tmp_path / "alone" / "README.md").write_text("---\ntags: [llmkit]\n---\n# Mine\n")
    assert push.json(tmp_path / "alone", "--repo", "mine")["code"] == 0
    assert set(hub.repos["me/mine"].files) == {*FILES, "README.md"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "needs a run"),
        (["runs/x"], 2, "needs --repo"),
        (["runs/x", "--repo", "a/b/c", "--yes"], 2, "cannot be a repository"),
        (["runs/x", "--repo", "a--b", "--yes"], 2, "cannot be a repository"),
        (["runs/x", "--repo", "mine", "--yes"], 66, "there is no run"),
    ],
)
def test_a_wrong_command_line_names_what_to_type(
    push: Push, hub: Hub, arguments: list[str], code: int, said: str
) -> None:
    ended, _, told = push(*arguments)
    assert ended == code
    assert said in told
    assert hub.requests == []


def test_a_refusal_loads_no_model_libraries(push: Push, run: Path) -> None:
    script = (
        "import sys; from llmkit.cli.app import run_command; code = run_command(sys.argv[1:]);"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "push", str(run), "--repo", "mine", "--yes"],
        env=push.environment(HF_TOKEN=""), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 73, done.stderr


UPLOADS = {
    "create_repo", "create_commit", "create_commits_on_pr", "create_branch", "create_tag",
    "upload_file", "upload_folder", "upload_large_folder", "preupload_lfs_files", "push_to_hub",
    "CommitOperationAdd", "metadata_update", "delete_file", "super_squash_history", "HfFileSystem",
    "CommitScheduler", "validate", "post", "urlopen", "send_telemetry", 
}  # fmt: skip


def names(path: Path) -> Iterator[str]:
    """The names that a file uses, imports or calls as methods."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")


def test_nothing_else_uploads() -> None:
    source = ROOT / "src" / "llmkit"
    found = {
        str(path.relative_to(source)): used
        for path in source.rglob("*.py")
        if (used := UPLOADS & set(names(path)))
    }
    routes = found.pop("serving/http/app.py")  # FastAPI's name for requests that the server answers
    assert routes == {"post"}
    assert found == {"export/push.py": {"create_repo", "create_commit", "CommitOperationAdd"}}
    assert Config().report_to == ()
