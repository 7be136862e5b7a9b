import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llmkit.config.schema import Config
from llmkit.data.readers import files
from llmkit.data.readers.files import Sources
from llmkit.errors import ConfigError, DataError, InputNotFound


def written(path: Path, text: str = "text") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def found(*entries: object) -> list[str]:
    return [str(each.path) for each in files.find([str(e) for e in entries], "data.train_files")]


def fingerprint(*entries: object) -> str:
    whole = files.find([str(entry) for entry in entries], "data.train_files")
    return files.files_fingerprint(whole, lambda n_bytes: None)


def skipped(*entries: str) -> tuple[str, bool]:
    config = Config.model_validate({"data": {"train_files": list(entries)}})
    return Sources(config).skipped("data.train_files")


def test_a_directory_gives_its_text_sorted_and_no_hidden_files(tmp_path: Path) -> None:
    for name in ("b.txt", "a/z.JSONL", "c.csv.gz", "notes.md", ".hidden.txt", ".git/x.txt"):
        written(tmp_path / name)
    assert found(tmp_path) == [str(tmp_path / name) for name in ("a/z.JSONL", "b.txt", "c.csv.gz")]


def test_each_file_is_taken_once(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt")
    (tmp_path / "link.txt").symlink_to(path)
    assert len(found(path, tmp_path, tmp_path / "*.txt", path)) == 1


def test_a_glob_or_a_name_takes_any_suffix_as_plain_text(tmp_path: Path) -> None:
    written(tmp_path / "a" / "b" / "main.py")
    written(tmp_path / "[odd].log")
    assert found(tmp_path / "**" / "*.py") == [str(tmp_path / "a" / "b" / "main.py")]
    assert found(tmp_path / "[odd].log") == [str(tmp_path / "[odd].log")]
    [source] = files.find([str(tmp_path / "**/*.py")], "data.train_files")
    assert (source.format, source.compression) == ("txt", "")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv.gz", ("csv", "gz")), ("a.gz", ("txt", "gz")), ("a.txt.GZ", ("txt", "gz"))],
)
def test_the_suffix_before_that_of_the_compression_tells_the_format(
    tmp_path: Path, name: str, kind: tuple[str, str]
) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"text"))
    [source] = files.find([str(tmp_path / name)], "data.train_files")
    assert (source.format, source.compression) == kind


def test_a_missing_file_is_reported_with_its_nearest_name(tmp_path: Path) -> None:
    written(tmp_path / "novels.txt")
    with pytest.raises(InputNotFound) as fault:
        found(tmp_path / "novel.txt")
    assert "data.train_files" in fault.value.where
    assert "novels.txt" in fault.value.next
    with pytest.raises(InputNotFound) as fault:
        found(tmp_path / "nvels.txt" / "part.txt")
    assert "novels.txt" in fault.value.next


def test_a_directory_without_text_names_the_glob_that_takes_its_files(tmp_path: Path) -> None:
    written(tmp_path / "src" / "main.log")
    with pytest.raises(InputNotFound) as fault:
        found(tmp_path)
    assert ".jsonl" in str(fault.value)
    assert f"'{tmp_path}/**/*.log'" in fault.value.next
    assert found(f"{tmp_path}/**/*.log") == [str(tmp_path / "src" / "main.log")]


@pytest.mark.parametrize("names", [("a.md", "b/c.rst", "d.TEX"), ("main.py", "lib/part.rs")])
def test_a_directory_of_prose_or_code_is_read(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in (*names, "picture.png", "data.bin"):
        written(tmp_path / name)
    assert found(tmp_path) == sorted(str(tmp_path / name) for name in names)


def test_a_sliver_of_text_does_not_hide_the_prose_beside_it(tmp_path: Path) -> None:
    written(tmp_path / "requirements.txt", "numpy")
    for name in "abc":
        written(tmp_path / f"{name}.md", "word " * 3000)
    assert len(found(tmp_path)) == 4
    assert skipped(str(tmp_path)) == ("", False)


def test_prose_is_never_read_beside_tables(tmp_path: Path) -> None:
    table = written(tmp_path / "train.csv", "text,label\na,b\n")
    written(tmp_path / "README.md", "word " * 3000)
    assert found(tmp_path) == [str(table)]
    sentence, is_most = skipped(str(tmp_path))
    assert is_most
    assert "1 of 2 files are read; skipped: 1 .md (README.md), 15,000 of 15,015" in sentence


def test_what_a_directory_holds_beside_its_text_is_counted_by_suffix(tmp_path: Path) -> None:
    written(tmp_path / "a.txt", "word " * 3000)
    for name in ("b.md", "c.md", "d.pdf", "LICENSE"):
        written(tmp_path / name)
    sentence, is_most = skipped(str(tmp_path), str(tmp_path / "a.txt"), "hub:x")
    assert not is_most
    assert "1 of 5 files are read" in sentence
    assert "2 .md, 1 without suffix, 1 .pdf (LICENSE, b.md, c.md, ...)" in sentence


def test_a_glob_that_matches_nothing_is_not_found(tmp_path: Path) -> None:
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(InputNotFound, match="matches no file"):
        found(tmp_path / "*.txt")


def test_an_empty_file_is_fine_among_others_and_not_alone(tmp_path: Path) -> None:
    written(tmp_path / "empty.txt", "")
    with pytest.raises(InputNotFound):
        found(tmp_path / "empty.txt")
    written(tmp_path / "full.txt")
    assert len(found(tmp_path)) == 2


def test_a_pipe_is_refused_without_being_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputNotFound, match="not a regular file"):
        found(tmp_path / "pipe")


def test_the_fingerprint_goes_by_content_and_format_not_by_name(tmp_path: Path) -> None:
    first, other = written(tmp_path / "a.txt", "same"), written(tmp_path / "b.txt", "same")
    assert fingerprint(first) == fingerprint(other)
    assert fingerprint(first) != fingerprint(written(tmp_path / "c.csv", "same"))
    assert fingerprint(first) != fingerprint(written(tmp_path / "d.txt", "Same"))
    whole = fingerprint(written(tmp_path / "1.txt", "ab"), written(tmp_path / "2.txt", "c"))
    parted = fingerprint(written(tmp_path / "3.txt", "a"), written(tmp_path / "4.txt", "bc"))
    assert whole != parted


def test_a_file_that_changes_after_it_was_found_is_noticed(tmp_path: Path) -> None:
    path = written(tmp_path / "a.txt")
    [source] = files.find([str(path)], "data.train_files")
    files.check_unchanged(source)
    written(path, "longer than before")
    with pytest.raises(DataError, match="changed while"):
        files.check_unchanged(source)


def test_a_hub_name_of_another_form_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match="hub:NAME"):
        found("hub:a:b:c")


COUNTED = """
import json
import sys
from collections import Counter
from pathlib import Path

folder, *line = sys.argv[1:]
seen = Counter()


def count(event, arguments):
    if event in ("os.scandir", "open") and str(arguments[0]).startswith(folder):
        seen[f"{event} {Path(str(arguments[0])).name}"] += 1


from llmkit.cli import app
from llmkit.data.readers import files

files.find([folder], "data.train_files")  # what is not a result of ours is remembered
sys.addaudithook(count)
files.find([folder], "data.train_files")
once = dict(seen)
seen.clear()
code = app.run_command(line)
print(json.dumps([code, once, dict(seen)]), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("command", "name", "row"),
    [
        ("pretrain", "all.txt", "text {}"),
        pytest.param("finetune", "all.csv", "text {},{}", marks=pytest.mark.slow),
    ],
)
def test_a_command_finds_its_files_once(tmp_path: Path, command: str, name: str, row: str) -> None:
    rows = [row.format(number, number % 2) for number in range(40)]
    written(tmp_path / "data" / name, "\n".join(["text,label", *rows]))
    line = [command, f"data.train_files={tmp_path / 'data'}", f"output_dir={tmp_path / 'run'}"]
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, str(tmp_path / "data"), *line, "--dry-run", "--json"],
        capture_output=True,
        text=True,
        check=True,
    )
    code, once, all_told = json.loads(done.stderr.splitlines()[-1])
    assert code == 0
    assert once["os.scandir data"]
    assert all_told == once
