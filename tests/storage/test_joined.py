import os
from pathlib import Path

import pytest

from llmkit.storage.joined import JoinedFiles


@pytest.mark.parametrize("n_files", [1, 3, 300])
def test_files_are_read_as_one(tmp_path: Path, n_files: int) -> None:
    parts = [os.urandom(number % 5) for number in range(n_files)]
    paths = [tmp_path / str(number) for number in range(n_files)]
    for path, part in zip(paths, parts, strict=True):
        path.write_bytes(part)
    whole = b"".join(parts)
    joined = JoinedFiles(paths, [len(part) for part in parts])
    for start in range(0, len(whole) + 2, 1 + len(whole) // 50):
        for length in (0, 1, 7, len(whole) + 1):
            assert joined.read_at(length, start) == whole[start : start + length]
    joined.close()


def test_a_file_that_became_shorter_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"ab")
    joined = JoinedFiles([tmp_path / "short"], [5])
    with pytest.raises(OSError, match="shorter"):
        joined.read_at(5, 0)
    joined.close()
