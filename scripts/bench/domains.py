"""How well `data.domains: auto` finds the origin of text, how fast, and in how much memory.

    python scripts/bench/domains.py NOVELS POEMS CODE [--domains 3] [--seeds 3] [--equal]

Paragraphs of novels (lines), poems and blocks of code (files in a directory, both between blank
lines) are shuffled and mixed in one unlabelled file; with `--equal`, as many bytes of each as there
are of the smallest. Prints one JSON line for each seed. `purity` is the share of bytes whose origin
is the most frequent one in their domain, `found` the share of each origin that is in such domains;
`sizes` are multiples of the mean, in bytes. `seconds` of the processor are those of reading,
finding domains and assigning documents; `memory_MiB` is what they added to the peak memory.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from llmkit.config.schema import Config
from llmkit.data.readers import files
from llmkit.data.text import division, spooling

ORIGINS = ("novels", "poems", "code")


@contextmanager
def watch(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda amount: None


def documents(
    novels: Path, poems: Path, code: Path, seed: int, equal: bool
) -> list[tuple[str, int]]:
    """Documents and the numbers of their origins, in random order."""
    blocks = [path.read_text(encoding="utf-8") for path in sorted(code.rglob("*.py"))]
    texts = (
        novels.read_text(encoding="utf-8").split("\n"),
        poems.read_text(encoding="utf-8").split("\n\n"),
        [block for text in blocks for block in re.split(r"\n\s*\n", text)],
    )
    draw = random.Random(seed)
    kept = [[text for text in some if text.strip()] for some in texts]
    fewest = min(sum(len(text.encode()) for text in some) for some in kept)
    mixed = []
    for number, some in enumerate(kept):
        draw.shuffle(some)
        size = 0
        for text in some:
            if equal and size >= fewest:
                break
            size += len(text.encode())
            mixed.append((text, number))
    draw.shuffle(mixed)
    return mixed


def measure(mixed: list[tuple[str, int]], n_domains: int, seed: int) -> dict[str, Any]:
    """The figures of one file."""
    config = Config.model_validate({"data": {"text_column": "text"}})
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "mixed.jsonl"
        lines = (json.dumps({"text": text}, ensure_ascii=False) for text, _ in mixed)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        found = files.find([str(path)], "data.train_files")
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        times = [time.process_time()]
        read = spooling.spool(found, config.data, Path(directory), lambda n_bytes: None)
        times.append(time.process_time())
        clusters = division.find_clusters(read, n_domains, seed, watch)
        times.append(time.process_time())
        numbers = division.assign(read, clusters, watch).numbers
        times.append(time.process_time())
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        read.close()
    table = np.zeros((n_domains, len(ORIGINS)))
    sizes = [len(text.encode()) for text, _ in mixed]
    np.add.at(table, (numbers, [origin for _, origin in mixed]), sizes)
    main, megabytes = table.argmax(axis=1), table.sum() / 1e6
    seconds = dict(zip(("read", "find", "assign"), np.diff(times).tolist(), strict=True))
    return {
        "seed": seed,
        "documents": len(mixed),
        "megabytes": round(megabytes, 2),
        "purity": round(float(table.max(axis=1).sum() / table.sum()), 4),
        "found": {
            name: round(float(table[main == origin, origin].sum() / table[:, origin].sum()), 4)
            for origin, name in enumerate(ORIGINS)
        },
        "sizes": [round(float(size), 2) for size in table.sum(axis=1) / table.sum() * n_domains],
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "seconds_per_megabyte": round(sum(seconds.values()) / megabytes, 3),
        "memory_MiB": round((after - before) / 1024),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ORIGINS:
        parser.add_argument(name, type=Path)
    parser.add_argument("--domains", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--equal", action="store_true")
    asked = parser.parse_args()
    for seed in range(asked.seeds):
        mixed = documents(asked.novels, asked.poems, asked.code, seed, asked.equal)
        print(json.dumps(measure(mixed, asked.domains, seed)), flush=True)


if __name__ == "__main__":
    main()
