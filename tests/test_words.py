"""Texts for users use the field's standard terms, and none that have a private meaning here."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmkit.cli import app
from llmkit.cli.options import OPTIONS

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "llmkit"

WORDS = {
    r"\b(goes?|went|going) on\b(?! an?\b)": "resume, continue",
    r"\bsettled?\b": "resolve",
    r"\b(comes?|came) (out )?to\b": "resolve to, is",
    r"\btold\b": "report, warn",
    r"\bas it comes\b": "by default",
    r"\b(most|fewest) tokens\b": "maximum number of tokens",
    r"\bis (no|not a) (longer a )?number\b": "NaN or infinite",
    r"a (whole )?number of at least": "int >= 1",
    r"\bstand(s|ing)? (in line|twice|before|behind|in place)\b": "appears, precedes",
    r"\bleft? (it )?out\b(?! validat)": "remove, skip",
    r"\bturn(s|ed)? away\b": "refuse, reject",
    r"\bmodels? that exists?\b": "pretrained model",
    r"\bwhat parts\b|\bparted\b": "separator",
    r"\bmetric that .* is best in\b|\bis best in\b": "metric for the best model",
    r"\bset aside\b": "quarantine",
    r"\b(does|do) not go (together|with)\b|\bgoes? with it\b": "cannot be combined",
    r"\bhangs? on\b": "depends on",
    r"\bof (one's|its|their|your) own\b": "own",
    r"\bstretch(es)?\b": "segment",
    r"\bfor people\b": "plain text, human-readable",
    r"\bin silence\b": "silently",
    r"\bthe reader of stdout\b": "broken pipe",
    r"\banew\b": "again",
    r"\b(it|that|which) (is|are) no (?!better|longer|worse|more|larger|smaller)\w": "is not a",
}
"""Words in senses that only this project gave them, and what to write instead."""

KEYS = re.compile("^(parted|settled)$")
"""Keys of JSON files that keep their names, so that files of earlier versions are still read."""

DOCUMENTS = [
    ROOT / "README.md",
    ROOT / ".github" / "CONTRIBUTING.md",
    *sorted((ROOT / "configs").glob("*.md")),
    *sorted((ROOT / "configs").glob("*.yaml")),
    *sorted((ROOT / "configs").glob("*.py")),
]


def private_words(text: str) -> list[str]:
    """The words of the list in a text, with what to write instead."""
    flat = " ".join(text.split())
    return [
        f"...{flat[max(0, found.start() - 30) : found.end() + 20]}...: write {instead}"
        for pattern, instead in WORDS.items()
        for found in re.finditer(pattern, flat, re.IGNORECASE)
    ]


def literals(path: Path) -> Iterator[str]:
    """The string literals of a file; the parts of an f-string are joined."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    joined = [node.values for node in nodes if isinstance(node, ast.JoinedStr)]
    inner = {id(part) for parts in joined for part in parts}
    for parts in joined:
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "X" for part in parts)
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inner:
            yield node.value


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_use_standard_terms(path: Path) -> None:
    assert private_words(path.read_text(encoding="utf-8").replace("\n#", "\n")) == []


@pytest.mark.parametrize("command", ["", "keys", *OPTIONS])
def test_help_uses_standard_terms(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert app.run_command([*command.split(), "--help"]) == 0
    assert private_words(capsys.readouterr().out) == []


@pytest.mark.parametrize(
    "path",
    sorted(SOURCE.rglob("*.py")),
    ids=lambda path: str(path.relative_to(SOURCE)),
)
def test_messages_and_docstrings_use_standard_terms(path: Path) -> None:
    texts = (KEYS.sub("", text) for text in literals(path))
    assert [found for text in texts for found in private_words(text)] == []


def test_a_private_word_is_found_across_lines_and_in_any_case() -> None:
    assert len(private_words("The run\n  goes\n  on there. As it comes.")) == 2
    assert private_words("It continues training, depending on the number of tokens.") == []


def test_names_of_tests_use_standard_terms() -> None:
    names = [
        node.name.replace("_", " ")
        for path in Path(__file__).parent.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]
    assert [found for name in names for found in private_words(name)] == []
