"""The shape of the house: who imports whom, how large its parts are, what is never written."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import house
import keywords
import pytest
from house import FILES, ROOT, SOURCE

from llmkit.config import reference
from llmkit.config.jobs import TASKS
from llmkit.config.load import load_config

LAYERS = (
    {"bootstrap", "errors", "progress"},
    {"config", "distributed", "extras", "storage"},
    {"models", "reporting"},
    {"data"},
    {"inference"},
    {"evaluation"},
    {"training", "export", "serving"},
    {"commands"},
    {"cli"},
    {"api"},
    {"__init__", "__main__"},
)
RANK = {room: rank for rank, rooms in enumerate(LAYERS) for room in rooms}
HEAVY = {"torch", "transformers", "datasets", "accelerate", "numpy", "tokenizers", "pyarrow"}

LIGHT = (
    *(SOURCE / "cli").rglob("*.py"),
    *(SOURCE / "config").glob("*.py"),
    *(
        SOURCE / f"{name}.py"
        for name in (
            "errors", "extras", "distributed/launcher", "distributed/signals", "storage/paths",
        )
    ),
)  # fmt: skip

MAX_LINES_OF_A_FUNCTION = 60
MAX_LINES_OF_A_FILE = 400
MAX_FILES_OF_A_ROOM = 15
MAX_IMPORT_DEPTH = 17


def imports(path: Path) -> Iterator[str]:
    """The dotted names that a file imports, anywhere in it."""
    for node in ast.walk(house.tree(path)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            if node.module == "llmkit":
                yield from (f"llmkit.{name.name}" for name in node.names)
            else:
                yield node.module or ""


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def rooms_imported(path: Path) -> Iterator[str]:
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "llmkit" and len(parts) > 1 and not parts[1].startswith("__"):
            yield parts[1]


def test_every_room_has_its_layer() -> None:
    assert {room(path) for path in FILES} == set(RANK)


def test_imports_point_one_way() -> None:
    wrong = {
        f"{path.relative_to(SOURCE)} -> {other}"
        for path in FILES
        for other in rooms_imported(path)
        if other != room(path) and RANK[other] >= RANK[room(path)]
    }
    assert wrong == set()


def test_commands_do_not_import_one_another() -> None:
    wrong = [
        f"{path.name} -> {name}"
        for path in (SOURCE / "commands").glob("*.py")
        for name in imports(path)
        if name.startswith("llmkit.commands.")
    ]
    assert wrong == []


def test_no_modules_import_one_another() -> None:
    assert house.circles() == []


def test_a_reader_is_never_far_from_the_ground() -> None:
    assert len(house.longest_chain()) <= MAX_IMPORT_DEPTH, " -> ".join(house.longest_chain())


def test_a_room_holds_few_files() -> None:
    assert {room: n for room, n in house.rooms().items() if n > MAX_FILES_OF_A_ROOM} == {}


def test_a_public_name_has_one_meaning() -> None:
    assert house.names_with_several_meanings() == {}


def test_the_command_line_and_the_config_are_light() -> None:
    named = {name.split(".")[0] for path in LIGHT for name in imports(path)}
    assert named & HEAVY == set()
    script = "import llmkit.cli.app, sys; print(sorted(set(sys.argv[1:]) & set(sys.modules)))"
    command = [sys.executable, "-c", script, *HEAVY, "rich"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"


def test_files_and_functions_are_small() -> None:
    files = {path: path.read_text(encoding="utf-8").count("\n") for path in FILES}
    large = [f"{path}: {lines}" for path, lines in files.items() if lines > MAX_LINES_OF_A_FILE]
    large += [
        f"{path}: {name}: {lines}"
        for path in FILES
        for name, lines in house.functions(path)
        if lines > MAX_LINES_OF_A_FUNCTION
    ]
    assert large == []


def test_every_module_says_why_it_exists() -> None:
    silent = [
        str(path.relative_to(SOURCE))
        for path in FILES
        if house.tree(path).body and not ast.get_docstring(house.tree(path))
    ]
    assert silent == []


SPANNING = {
    "commands/test_length.py", "commands/test_opening.py", "commands/test_other_models.py",
    "commands/test_transformer.py",
}  # fmt: skip
"""Tests of a rule that several modules keep; all of tests/fault are such."""


def test_a_file_of_tests_is_named_after_its_module() -> None:
    tests = ROOT / "tests"
    files = {path.relative_to(tests) for path in tests.rglob("*/test_*.py")}
    named = {
        file
        for file in files
        for module in (SOURCE / file.parent).glob("*.py")
        if f"{file.stem}_".startswith(f"test_{module.stem}_")
    }
    without = {str(file) for file in files - named if file.parts[0] != "fault"}
    assert without == SPANNING


NEVER = (
    r"torch\.load\(",
    r"\bimport (pickle|dill|joblib|cloudpickle)|from (pickle|dill|joblib|cloudpickle) import",
    r"allow_pickle\s*=\s*True",
    r"yaml\.(unsafe_|full_)?load\(",
    r"(?<![\w.])(eval|exec)\(",
    r"shell\s*=\s*True",
    r"trust_remote_code\s*=\s*True",
    r"weights_only\s*=\s*False",
)


@pytest.mark.parametrize("pattern", NEVER)
def test_nothing_dangerous_is_written(pattern: str) -> None:
    found = [
        f"{path.relative_to(SOURCE)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1)
        if re.search(pattern, line)
    ]
    assert found == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_that_we_ship_loads(path: Path) -> None:
    assert path.read_text().startswith("# yaml-language-server: $schema=schema.json\n")
    command = path.stem.partition("-")[0]
    assert load_config(command if command in TASKS else "pretrain", path, []).config


def test_the_schema_for_editors_is_fresh() -> None:
    written = (ROOT / "configs" / "schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(reference.json_schema(), indent=2) + "\n", "run scripts/docs"


def test_the_types_of_keywords_are_fresh() -> None:
    written = (SOURCE / "api" / "keywords.py").read_text(encoding="utf-8")
    assert written == keywords.keyword_types(), "run scripts/docs"


def test_the_code_map_and_the_key_table_are_fresh() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    drawn = text.split("<!-- code map: generated by scripts/docs -->\n")[1].split("<!-- end -->")[0]
    assert drawn == house.code_map(), "run scripts/docs"
    everything = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert everything.endswith(reference.key_table()), "run scripts/docs"


@pytest.mark.parametrize("name", ["setup", "demo", "check", "test", "docs"])
def test_scripts_are_short_and_can_be_run(name: str) -> None:
    script = ROOT / "scripts" / name
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
    assert script.read_text().count("\n") <= 25
    subprocess.run(["sh", "-n", str(script)], check=True)
