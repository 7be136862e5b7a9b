"""Tagged rows of every usual form: what is read of them, and why some cannot be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llmkit.config.schema import DataConfig
from llmkit.data.readers import files
from llmkit.data.records.tagging import tagged
from llmkit.data.records.tagging.tagged import TaggedRow
from llmkit.errors import DataError


def read(path: Path, text: str, labelled: bool = True, **data: Any) -> list[TaggedRow]:
    path.write_text(text, encoding="utf-8")
    found = files.find([str(path)], "data.train_files")
    said: list[str] = []
    config = tagged.resolve_tagged_columns(found, DataConfig(**data), said.append, labelled)
    return list(tagged.read_tagged(found, config, labelled=labelled, extra=not labelled))


def tagged_words(row: TaggedRow) -> list[str]:
    """Each word with its tag."""
    assert row.problem is None, row.problem
    words = [row.text[start:end] for start, end in row.words.tolist()]
    return [f"{word}/{tag}" for word, tag in zip(words, row.tags or (), strict=True)]


def line(**values: Any) -> str:
    return json.dumps(values) + "\n"


EXPECTED = ["Angela/B-PER", "Merkel/I-PER", "spoke/O"]
TOKENS, TAGS = ["Angela", "Merkel", "spoke"], ["B-PER", "I-PER", "O"]
TEXT = "Angela Merkel spoke"
SPAN = {"start": 0, "end": 13, "label": "PER"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.conll", "Angela B-PER\nMerkel I-PER\nspoke O\n"),
        ("a.conll", "Angela NNP B-PER\nMerkel NNP I-PER\nspoke VBD O\n"),
        ("a.txt", "Angela\tB-PER\nMerkel\tI-PER\nspoke\tO\n\n"),
        ("a.tsv", "Angela\tB-PER\nMerkel\tI-PER\nspoke\tO\n\n"),
        ("a.jsonl", line(tokens=TOKENS, tags=TAGS)),
        ("a.jsonl", line(words=TOKENS, ner=TAGS)),
        ("a.jsonl", line(id=7, tokens=TOKENS, ner_tags=TAGS)),
        ("a.jsonl", line(text=TEXT, tags=TAGS)),
        ("a.jsonl", line(text=TEXT, spans=[SPAN])),
        ("a.jsonl", line(text=TEXT, tokens=TOKENS, spans=[SPAN])),
        ("a.jsonl", line(text=TEXT, label=[[0, 13, "PER"]])),
        ("a.jsonl", line(text=TEXT, entities=[{"begin": 0, "end": 13, "type": "PER"}])),
        ("a.jsonl", line(text=TEXT, spans=[{**SPAN, "end": 14}])),  # white space at its end
        ("a.json", json.dumps([{"tokens": TOKENS, "tags": TAGS}])),
        ("a.csv", f'tokens,tags\n"{TOKENS}","{TAGS}"\n'),
        ("a.csv", f"text,tags\n{TEXT},{' '.join(TAGS)}\n"),
        ("a.csv", f"text,spans\n{TEXT},\"[[0, 13, 'PER']]\"\n"),
        ("a.csv", 'text,spans\n{},"{}"\n'.format(TEXT, json.dumps([SPAN]).replace('"', '""'))),
    ],
)
def test_every_form_is_read_as_the_same_words_and_tags(tmp_path, name, text) -> None:
    [row] = read(tmp_path / name, text)
    assert tagged_words(row) == EXPECTED
    assert row.text == TEXT


def test_conll_u_gives_parts_of_speech_and_the_running_text(tmp_path: Path) -> None:
    lines = ["1\tHe\the\tPRON", "2\tknows\tknow\tVERB", "3\t.\t.\tPUNCT"]
    ends = ["_", "SpaceAfter=No", "_"]
    text = "".join(f"{a}\t_\t_\t_\t_\t_\t{b}\n" for a, b in zip(lines, ends, strict=True))
    [row] = read(tmp_path / "a.conllu", text)
    assert row.text == "He knows."
    assert tagged_words(row) == ["He/PRON", "knows/VERB", "./PUNCT"]


def test_a_column_that_is_named_is_used(tmp_path: Path) -> None:
    text = "Angela NNP B-PER\nspoke VBD O\n"
    [row] = read(tmp_path / "a.conll", text, label_column=1)
    assert tagged_words(row) == ["Angela/NNP", "spoke/VBD"]
    both = line(tokens=["a"], ner_tags=["O"], pos_tags=["DET"])
    [row] = read(tmp_path / "a.jsonl", both, label_column="pos_tags")
    assert tagged_words(row) == ["a/DET"]
    with pytest.raises(DataError, match="not clear which column has the tags") as fault:
        read(tmp_path / "a.jsonl", both)
    assert "1 'ner_tags', 2 'pos_tags'" in fault.value.next


def test_numbers_are_read_as_tags(tmp_path: Path) -> None:
    [row] = read(tmp_path / "a.jsonl", line(tokens=["a", "b"], ner_tags=[0, 3]))
    assert row.tags == ("0", "3")


def test_a_text_without_spans_is_outside_of_entities(tmp_path: Path) -> None:
    [row] = read(tmp_path / "a.jsonl", line(text="no one here", spans=[]))
    assert row.tags == ("O", "O", "O")
    [row] = read(tmp_path / "a.jsonl", line(text="no one here", spans=None))
    assert row.tags is None


def test_a_span_is_widened_to_whole_words_and_counted(tmp_path: Path) -> None:
    spans = [{"start": 0, "end": 3, "label": "X"}, {"start": 4, "end": 5, "label": "Y"}]
    [row] = read(tmp_path / "a.jsonl", line(text="Germany's 1", spans=spans[:1]))
    assert tagged_words(row) == ["Germany/B-X", "'/O", "s/O", "1/O"]
    assert row.n_widened == 1
    [row] = read(tmp_path / "a.jsonl", line(text="Germany's 1", spans=spans))
    assert row.problem is not None
    assert (row.problem.name, row.problem.reason) == (
        "bad_spans", "two spans share the word 'Germany'",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("values", "name", "said"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "tag_count", "2 tokens and 1 tags"),
        ({"text": "a b", "tags": ["O"]}, "tag_count", "2 tokens and 1 tags"),
        ({"tokens": [], "tags": ["O"]}, "tag_count", "0 tokens and 1 tags"),
        ({"text": "ab", "spans": [[0, 9, "X"]]}, "bad_spans", "outside of the text"),
        ({"text": "a b c", "spans": [[0, 3, "X"], [2, 5, "Y"]]}, "bad_spans", "2-5 (Y) overlaps"),
        ({"text": "e\u0301", "spans": [[0, 1, "X"]]}, "bad_spans", "cuts a character at 1"),
        ({"text": "a  b", "spans": [[1, 3, "X"]]}, "bad_spans", "holds no word"),
    ],
)
def test_a_row_that_cannot_be_used_says_why(tmp_path, values, name, said) -> None:
    [row] = read(tmp_path / "a.jsonl", line(**values))
    assert row.problem is not None
    assert row.problem.name == name
    assert said in row.problem.reason
    assert row.problem.where == f"{tmp_path}/a.jsonl:1"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"tokens": ["a", 1], "tags": ["O", "O"]}, "'tokens' of this row is int, not text"),
        ({"tokens": ["a"], "tags": [1.5]}, "holds 1.5"),
        ({"tokens": ["a"], "tags": {"a": "O"}}, "is dict"),
        ({"text": "ab", "spans": [{"start": 0, "label": "X"}]}, 'holds {"start": 0, "label": "X"}'),
        ({"text": "ab", "spans": [{"start": 0, "end": 1, "label": ""}]}, "holds"),
        ({"text": 7, "spans": []}, "is int, not text"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_its_row(tmp_path, values, said) -> None:
    first = line(**{name: [] if isinstance(v, list | dict) else "x" for name, v in values.items()})
    with pytest.raises(DataError) as fault:
        read(tmp_path / "a.jsonl", first + line(**values))
    assert said in fault.value.what
    assert "data row 2" in fault.value.what
    assert fault.value.where == f"{tmp_path}/a.jsonl:2"


MARKED = "the cat << ate >> the fish"


@pytest.mark.parametrize(
    "values",
    [
        {"predicate": 2},
        {"predicate": "2"},
        {"predicate": [0, 0, 1, 0, 0]},
        {"predicate": ["-", "-", "eat.01", "-", "-"]},
        {"predicate": [None, "", "V", "_", "O"]},
    ],
)
def test_the_predicate_is_enclosed_in_the_text_that_is_read(tmp_path, values) -> None:
    tokens = "the cat ate the fish".split()
    tags = "B-A0 I-A0 B-V B-A1 I-A1".split()
    [row] = read(tmp_path / "a.jsonl", line(tokens=tokens, tags=tags, **values))
    text, words = row.read()
    assert text == MARKED
    assert [text[a:b] for a, b in words.tolist()] == tokens
    assert row.text == " ".join(tokens)


def test_the_predicate_of_a_text_is_a_span_and_of_conll_a_column(tmp_path: Path) -> None:
    values = {"text": "the cat ate the fish", "spans": [[0, 7, "A0"]], "predicate": [8, 11]}
    [row] = read(tmp_path / "a.jsonl", line(**values))
    assert row.read()[0] == MARKED
    text = "the - O\ncat - O\nate V B-V\nthe - O\nfish - O\n"
    [row] = read(tmp_path / "a.conll", text, mark_column=1)
    assert row.read()[0] == MARKED
    assert (row.tags or ())[2] == "B-V"


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (5, "the marked word 5 is none of the 2 words"),
        ([1, 0, 0], "3 marks and 2 words"),
        ([0, 0], "0 words are marked"),
        (None, "None marks no word"),
        ("x", "'x' marks no word"),
    ],
)
def test_a_predicate_that_is_not_clear_is_named(tmp_path, mark, said) -> None:
    values = {"tokens": ["a", "b"], "tags": ["O", "O"]}
    rows = read(tmp_path / "a.jsonl", line(**values, predicate=0) + line(**values, predicate=mark))
    assert rows[1].problem is not None
    assert rows[1].problem.name == "bad_marks"
    assert said in rows[1].problem.reason


def test_lines_of_text_are_texts_where_no_tags_are_needed(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.txt", "Angela spoke\n\nno one\n", labelled=False)
    assert [row.text for row in rows] == ["Angela spoke", "", "no one"]
    assert all(row.tokens is None and row.tags is None for row in rows)
    [row] = read(tmp_path / "a.conll", "Angela\nspoke\n", labelled=False)
    assert row.tokens == ("Angela", "spoke")
    [row] = read(tmp_path / "b.txt", "Angela X\nspoke Y\n", labelled=False, format="conll")
    assert row.tokens == ("Angela", "spoke")
    assert row.extra == {"1": ["X", "Y"]}


def test_the_words_of_a_row_have_their_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.conll", "a O\nb O\n\n\nc O\n")
    assert [list(row.lines) for row in rows] == [[1, 2], [5]]
