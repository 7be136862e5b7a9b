"""The encoding of a file is found, or the file is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmkit.config.schema import DataConfig
from llmkit.data.cleaning.encodings import FileEncoding, encoding_of
from llmkit.data.readers.decode import Reading, chunks
from llmkit.data.readers.files import find
from tests.dirty import SENTENCES

WRITTEN = [
    ("de", "cp1252"), ("fr", "latin-1"), ("pl", "cp1250"), ("ru", "cp1251"), ("ru", "koi8_r"),
    ("zh", "big5"), ("zh", "gb18030"), ("ja", "shift_jis"), ("ko", "euc_kr"),
    ("pl", "iso8859_2"), ("cs", "cp1250"), ("lt", "cp1257"), ("tr", "cp1254"), ("th", "cp874"),
]  # fmt: skip

LATIN = {
    "cs": "Všichni lidé rodí se svobodní a sobě rovní co do důstojnosti a práv.",
    "lt": "Visi žmonės gimsta laisvi ir lygūs savo orumu ir teisėmis, turi protą ir sąžinę.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",  # noqa: RUF001
}


def encoded(path: Path, content: bytes) -> FileEncoding:
    path.write_bytes(content)
    [source] = find([str(path)], "data.train_files")
    return encoding_of(source, DataConfig())


@pytest.mark.parametrize(("language", "encoding"), WRITTEN)
def test_a_file_reads_as_it_was_written(language: str, encoding: str, tmp_path: Path) -> None:
    text = f"{SENTENCES['en']}\n{(SENTENCES | LATIN)[language]}\n" * 3
    found = encoded(tmp_path / "a.txt", text.encode(encoding))
    assert found.source is not None
    assert "".join(chunks(found.source, Reading(DataConfig(), lambda n: None))) == text


def test_utf_8_is_left_alone(tmp_path: Path) -> None:
    text = "\n".join(SENTENCES.values())
    assert encoded(tmp_path / "a.txt", text.encode()).encoding == "utf-8"
    # A character at the border of two reads.
    wide = "é" * (1 << 18) + "\n"
    assert encoded(tmp_path / "b.txt", b"a" + wide.encode()).encoding == "utf-8"


def test_single_bad_bytes_of_utf_8_are_replaced(tmp_path: Path) -> None:
    content = "\n".join(SENTENCES.values()).encode() + b"\n\xf0\n"
    found = encoded(tmp_path / "a.txt", content)
    assert (found.encoding, found.lenient) == ("utf-8", True)


def test_a_named_encoding_decides(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(SENTENCES["ru"].encode("cp1251"))
    [source] = find([str(path)], "data.train_files")
    assert encoding_of(source, DataConfig(encoding="koi8_r")) == FileEncoding(source, "koi8_r")


def test_bytes_of_no_encoding_are_refused(tmp_path: Path) -> None:
    assert encoded(tmp_path / "a.txt", bytes(range(128, 256)) * 40).source is None


def test_real_files_are_recognised(shared: Path) -> None:
    known = {"cmn_hans.gb2312.txt": "gb18030", "jpn.shift_jis.txt": "cp932"}
    known["rus.windows-1251.txt"] = "cp1251"
    for source in find([str(shared / "text" / "udhr")], "data.train_files"):
        name = Path(str(source.path)).name
        assert encoding_of(source, DataConfig()).encoding == known.get(name, "utf-8")
