"""CoNLL files: sentences of words with columns, of every dialect that is met."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.schema import DataConfig
from llmkit.data.readers import conll, files, formats
from llmkit.data.readers.decode import Reading
from llmkit.errors import DataError

CONLL_2003 = """-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC

Peter NNP B-NP B-PER
"""
CONLL_U = """# newdoc id = a
# sent_id = 1
# text = He don't know.
1\tHe\the\tPRON\tPRP\t_\t4\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\t_\t4\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t4\tadvmod\t_\t_
3.1\tempty\t_\t_\t_\t_\t_\t_\t_\t_
4\tknow\tknow\tVERB\tVB\t_\t0\troot\t_\tSpaceAfter=No
5\t.\t.\tPUNCT\t.\t_\t4\tpunct\t_\t_
"""


def opened(path: Path, text: str, **data: object):
    path.write_text(text, encoding="utf-8")
    [source] = files.find([str(path)], "data.train_files")
    reading = Reading(DataConfig(**data), lambda n_bytes: None)
    table = conll.open_conll(source, reading)
    return table, list(table.records(()))


def test_sentences_end_at_blank_lines_and_keep_their_line_numbers(tmp_path: Path) -> None:
    table, records = opened(tmp_path / "a.conll", CONLL_2003)
    assert len(table.columns) == 4
    assert table.columns.names is None
    assert [record.values[0] for record in records] == [["EU", "rejects", "German"], ["Peter"]]
    assert [record.values[3] for record in records] == [["B-ORG", "O", "B-MISC"], ["B-PER"]]
    assert [record.values[4] for record in records] == [[3, 4, 5], [7]]
    assert [record.where for record in records] == [f"{tmp_path}/a.conll:{n}" for n in (3, 7)]
    assert [record.number for record in records] == [1, 2]


def test_conll_u_has_named_columns_and_only_its_words(tmp_path: Path) -> None:
    table, [record] = opened(tmp_path / "a.conllu", CONLL_U)
    assert table.columns.names == conll.CONLL_U
    assert record.values[1] == ["He", "do", "n't", "know", "."]
    assert record.values[3] == ["PRON", "AUX", "PART", "VERB", "PUNCT"]
    assert conll.are_spaced(record, table.columns) == [True, True, True, False, True]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a O\r\nb O\r\n\r\nc O", [["a", "b"], ["c"]]),
        ("\n\n a\tO\n \n\nb\tO\n", [["a"], ["b"]]),
        ("New York\tB-LOC\nis\tO\n", [["New York", "is"]]),
        ("# O\n1 O\n", [["#", "1"]]),
        ("# id = 7\na O\n# O\n", [["a", "#"]]),
        ("你 B-X\n好 I-X\n", [["你", "好"]]),
        ("", []),
        ("\n \n", []),
        ("word\nother\n", [["word", "other"]]),
    ],
)
def test_dialects_are_read(tmp_path: Path, text: str, words: list[list[str]]) -> None:
    (tmp_path / "a.conll").write_bytes(text.encode() or b"\n")
    [source] = files.find([str(tmp_path / "a.conll")], "data.train_files")
    table = conll.open_conll(source, Reading(DataConfig(), lambda n_bytes: None))
    assert [record.values[0] for record in table.records(())] == words


def test_ten_columns_of_another_kind_are_not_conll_u(tmp_path: Path) -> None:
    line = "state-of " + " ".join("abcdefghi") + "\n"
    table, [record] = opened(tmp_path / "a.conll", line)
    assert table.columns.names is None
    assert record.values[0] == ["state-of"]


def test_a_line_of_another_width_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="this line has 3 columns, and the first one 2") as fault:
        opened(tmp_path / "a.conll", "a O\nb O\n\nc x O\n")
    assert fault.value.where == f"{tmp_path}/a.conll:4"
    with pytest.raises(DataError) as fault:
        opened(tmp_path / "a.conll", "a O\nb\n")
    assert fault.value.where == f"{tmp_path}/a.conll:2"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.txt", "a O\n", True),
        ("train", "a O\n", True),
        ("a.tsv", "Peter\tB-PER\nran\tO\n\n", True),
        ("a.tsv", "text\tspans\nhi\t[]\n", False),
        ("a.tsv", "mine\tyours\nhi\t[]\n", False),
        ("a.jsonl", '{"tokens": ["a"], "tags": ["O"]}\n', False),
        ("a.csv", "tokens,tags\na,O\n", False),
    ],
)
def test_a_file_is_conll_unless_its_columns_have_names(tmp_path, name, text, expected) -> None:
    (tmp_path / name).write_text(text)
    [source] = files.find([str(tmp_path / name)], "data.train_files")
    data = DataConfig(text_column="mine") if "mine" in text else DataConfig()
    reading = Reading(data, lambda n_bytes: None)
    names = frozenset(("text", "tokens", "tags", "spans"))
    assert conll.is_conll(source, reading, names) is expected


@pytest.mark.parametrize("name", ["a.conllu", "a.bio.txt", "a.conll.gz", "b.IOB2"])
def test_files_are_recognised_by_their_suffix(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("a O\n")
    [source] = files.find([str(tmp_path / name)], "data.train_files")
    assert formats.is_conll_name(str(source.path))
    (tmp_path / "plain.txt").write_text("a O\n")
    [source] = files.find([str(tmp_path / "plain.txt")], "data.train_files")
    assert not formats.is_conll_name(str(source.path))
