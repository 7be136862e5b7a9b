import gzip
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from llmkit.config.schema import DataConfig
from llmkit.data.readers import decode, files
from llmkit.data.readers.decode import Reading
from llmkit.data.text import documents
from llmkit.errors import DataError


def read(path: Path, **settings: object) -> list[str]:
    """The documents of a file."""
    [source] = files.find([str(path)], "data.train_files")
    state = Reading(DataConfig.model_validate(settings), lambda n_bytes: None)
    return joined(documents.pieces(source, state))


def joined(pieces: Iterator[documents.Piece]) -> list[str]:
    texts, open_text = [], ""
    for text, last in pieces:
        open_text += text
        if last:
            texts.append(open_text)
            open_text = ""
    assert not open_text
    return texts


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode, "CHUNK", 3)


TEXTS = [
    "a\nb\n",
    "a\r\nb",
    "\r\n\r\n",
    "a\u2028b\u0085c\x0cd\n",
    "a\rb\n\n\n \t \nc\n",
    "\n\n a\n\r",
]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("text", TEXTS)
def test_a_file_is_one_document_to_the_byte(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read(tmp_path / "a.txt") == [text]


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("text", TEXTS)
def test_only_lf_and_crlf_end_a_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_bytes(text.encode())
    lines = text.split("\n")
    expected = [line.removesuffix("\r") for line in lines[:-1]] + ([lines[-1]] if lines[-1] else [])
    assert read(tmp_path / "a.txt", document="line") == expected


@pytest.mark.usefixtures("small_chunks")
def test_blank_lines_part_documents(tmp_path: Path) -> None:
    text = "\n  \n one\n  two  \r\nthree\r\n\r\n \t\r\nfour\n" + " " * 20 + "\n   five\n\n"
    (tmp_path / "a.txt").write_bytes(text.encode())
    expected = [" one\n  two  \r\nthree", "four", "   five"]
    assert read(tmp_path / "a.txt", document="blank_line") == expected


@given(st.text("a \n\r\té", max_size=40), st.integers(1, 7))
def test_documents_do_not_depend_on_where_the_file_is_cut(text: str, size: int) -> None:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    for split in (documents._by_line, documents._by_blank_line, documents._whole):
        assert joined(split(iter(parts))) == joined(split(iter([text] if text else [])))


@given(st.text("ab \n\r", max_size=40))
def test_no_text_is_lost_between_blank_lines(text: str) -> None:
    found = joined(documents._by_blank_line(iter([text] if text else [])))
    assert "".join("".join(found).split()) == "".join(text.split())
    assert all(document.strip() for document in found)


def test_poems_come_one_by_one(shared: Path) -> None:
    poems = read(shared / "text" / "tang_poems.txt", document="blank_line")
    assert len(poems) == 12_227
    text = (shared / "text" / "tang_poems.txt").read_text(encoding="utf-8")
    assert poems == re.split(r"\n(?: *\n)+", text.strip("\n"))


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_a_packed_file_reads_as_its_content(tmp_path: Path, suffix: str) -> None:
    text = "héllo\n" * 1000
    pack = {"gz": gzip.compress, "zst": zstandard.compress}[suffix]
    path = tmp_path / f"a.txt.{suffix}"
    path.write_bytes(pack(text.encode()) + pack(b"end"))
    assert read(path) == [text + "end"]
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DataError, match="Truncated") as fault:
        read(path)
    assert str(path) in fault.value.where


def test_a_byte_order_mark_is_not_text(tmp_path: Path) -> None:
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "a.txt").write_bytes("né".encode(encoding))
        assert read(tmp_path / "a.txt", encoding=encoding.removesuffix("-sig")) == ["né"]


@pytest.mark.parametrize(
    ("name", "encoding"), [("jpn.shift_jis", "shift_jis"), ("cmn_hans.gb2312", "gb2312")]
)
@pytest.mark.usefixtures("small_chunks")
def test_other_encodings_are_read(shared: Path, name: str, encoding: str) -> None:
    path = shared / "text" / "udhr" / f"{name}.txt"
    assert read(path, encoding=encoding) == [path.read_bytes().decode(encoding)]
    with pytest.raises(DataError) as fault:
        read(path)
    assert "data.encoding" in fault.value.next


@pytest.mark.parametrize("chunk", [1, 3, 1 << 18])
@pytest.mark.parametrize(
    ("content", "encoding", "offset", "line"),
    [
        (b"ab\ncd\xffe", "utf-8", 5, 2),
        ("é\né".encode() + b"\xc3", "utf-8", 5, 2),
        (b"ab\ncd\xe4\xb8x", "utf-8", 5, 2),
        ("日本\n".encode("shift_jis") + b"\xffab", "shift_jis", 5, 2),
        ("日\n".encode("gb2312") + b"\xb0", "gb2312", 3, 2),
    ],
)
def test_a_byte_that_cannot_be_decoded_is_reported_with_its_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk: int,
    content: bytes,
    encoding: str,
    offset: int,
    line: int,
) -> None:
    monkeypatch.setattr(decode, "CHUNK", chunk)
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError) as fault:
        read(tmp_path / "a.txt", encoding=encoding)
    assert f"byte 0x{content[offset]:02x} at offset {offset} " in fault.value.what
    assert fault.value.where == f"{tmp_path}/a.txt:{line}"
    assert "data.errors" in fault.value.next


@given(
    st.lists(
        st.sampled_from([b"a", b"\n", "é".encode(), "你".encode(), b"\xff", b"\xe4", b"\xc3"])
    ),
    st.integers(1, 5),
)
def test_bad_bytes_are_replaced_as_python_does_and_counted(parts: list[bytes], size: int) -> None:
    content = b"".join(parts)
    for errors in ("replace", "ignore"):
        state = Reading(DataConfig(errors=errors), lambda n_bytes: None)
        decoder = decode._Decoder(files.Source(Path("a"), "txt", "", 0, 0), state)
        text = "".join(decoder.decode(content[i : i + size]) for i in range(0, len(content), size))
        text += decoder.decode(b"", final=True)
        assert text == content.decode(errors=errors)
        kept = content.decode(errors="ignore").encode()
        assert state.undecodable == len(content) - len(kept)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 1000])
def test_a_separator_parts_documents_to_the_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(decode, "CHUNK", size)
    text = "one\n<|end|>\r\ntwo <|end <|end|><|end|>三\n<|end|>"
    (tmp_path / "a.txt").write_bytes(text.encode())
    found = read(tmp_path / "a.txt", document_separator="<|end|>")
    assert found == text.removesuffix("<|end|>").split("<|end|>")


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_marks_between_documents_are_counted_and_the_key_named(size: int) -> None:
    text = "\n<|endoftext|>\n".join(f"story {i}" for i in range(300)) + " </s> </s>"
    counts = documents.MarkCounts()
    for first in range(0, len(text), size):
        counts.add(documents.Piece(text[first : first + size], first + size >= len(text)))
    [hint] = documents.mark_hints(counts.found, 1)
    assert "<|endoftext|> occurs 299 times in 1 document" in hint
    assert r"""'data.document_separator="\n<|endoftext|>\n"'""" in hint


def test_a_separator_and_another_kind_of_document_exclude_each_other() -> None:
    with pytest.raises(ValueError, match=r"cannot be combined with data\.document"):
        DataConfig.model_validate({"document": "line", "document_separator": "x"})
