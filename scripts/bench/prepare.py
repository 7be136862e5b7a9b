"""How fast `llmkit prepare` tokenizes with one worker and with several, and in how much memory.

    python scripts/bench/prepare.py workers NOVELS [--megabytes 256] [--workers 2] [--rounds 3]
    python scripts/bench/prepare.py memory NOVELS [--megabytes 1000]

The text is pieces of the novels in rows, repeated up to the size; the tokenizer is trained first.
Each command runs in a process of its own, with an empty cache. Prints JSON lines.
`workers`: seconds of one worker and of several in turn, each on one core, the median of their
ratio, and whether both made the same set. `ratio_of_processor_time` compares the time of the first
process and of one of those that it starts, without that of a small text; other work on the machine
changes it less. `memory`:
the peak of the largest process for a tenth of the text and for all.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

PIECE = 1300  # characters of a document

SCRIPT = (
    "import resource, sys; from llmkit.cli import app; code = app.run_command(sys.argv[1:]);"
    "own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN));"
    "times = [each.ru_utime + each.ru_stime for each in (own, others)];"
    "print(max(own.ru_maxrss, others.ru_maxrss), *times); sys.exit(code)"
)


def prepared(text: Path, workers: int, *keys: str) -> dict[str, Any]:
    """What the command prints, with its peak of memory, and the processor seconds of its first
    process and, in the mean, of one of those that it started."""
    with tempfile.TemporaryDirectory(dir=text.parent) as cache:
        line = ["prepare", "--text", str(text), "--workers", str(workers), "--json", *keys]
        # Alone, a process tokenizes with all cores.
        environment = os.environ | {"LLMKIT_CACHE": cache, "TOKENIZERS_PARALLELISM": "false"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *line],
            stdout=subprocess.PIPE, text=True, check=True, env=environment,
        )  # fmt: skip
    figures, used = done.stdout.strip().rsplit("\n", 1)
    memory, own, others = map(float, used.split())
    return {
        **json.loads(figures),
        "memory_MiB": round(memory / 1024),
        "processor": own + others / workers,
    }


def rows_of(novels: Path, megabytes: float, path: Path) -> Path:
    """Rows of about this much text."""
    content = novels.read_text(encoding="utf-8")
    pieces = [content[at : at + PIECE] for at in range(0, len(content), PIECE)]
    lines = [json.dumps({"text": piece}, ensure_ascii=False) + "\n" for piece in pieces]
    size, number = 0, 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            size += file.write(lines[number % len(lines)])
            number += 1
    return path


def trained_tokenizer(novels: Path, place: Path) -> str:
    """The key that names a tokenizer of 8,192 tokens."""
    from llmkit.models.tokenizer import train_bpe

    lines = novels.read_text(encoding="utf-8").splitlines(keepends=True)
    train_bpe(lines, 8192).save_pretrained(place / "tokenizer")
    return f"tokenizer.name_or_path={place / 'tokenizer'}"


def compare_workers(
    novels: Path, megabytes: float, workers: int, rounds: int, place: Path
) -> Iterator[dict[str, Any]]:
    text, key = rows_of(novels, megabytes, place / "rows.jsonl"), trained_tokenizer(novels, place)
    small = rows_of(novels, 0.1, place / "small.jsonl")
    start, ratios = prepared(small, 1, key)["processor"], list[float]()
    for _ in range(rounds):
        one, several = prepared(text, 1, key), prepared(text, workers, key)
        ratios.append(one["seconds"] / several["seconds"])
        yield {
            "megabytes": megabytes,
            "seconds": one["seconds"],
            f"seconds_of_{workers}": several["seconds"],
            "ratio": round(ratios[-1], 2),
            "ratio_of_processor_time": round(
                (one["processor"] - start) / (several["processor"] - start), 2
            ),
            "processor": [round(each["processor"], 1) for each in (one, several)],
            "processor_to_start": round(start, 1),
            "same": one["hash"] == several["hash"],
        }
    yield {"ratio": round(statistics.median(ratios), 2)}


def measure_memory(novels: Path, megabytes: float, place: Path) -> Iterator[dict[str, Any]]:
    key = trained_tokenizer(novels, place)
    for size in (megabytes / 10, megabytes):
        made = prepared(rows_of(novels, size, place / "rows.jsonl"), 1, key)
        yield {
            "megabytes": size,
            "tokens": sum(text["tokens"] for text in made["texts"]),
            "memory_MiB": made["memory_MiB"],
            "mb_per_second": round(size / made["seconds"], 2),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("workers", "memory"))
    parser.add_argument("text", type=Path)
    parser.add_argument("--megabytes", type=float)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        if given.what == "workers":
            size = given.megabytes or 256
            lines = compare_workers(given.text, size, given.workers, given.rounds, place)
        else:
            lines = measure_memory(given.text, given.megabytes or 1000, place)
        for line in lines:
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
