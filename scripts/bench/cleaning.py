"""What `llmkit clean` finds and harms, how fast, in how much memory, and what a model gains.

    python scripts/bench/cleaning.py found TEXT_DIR
    python scripts/bench/cleaning.py speed NOVELS
    python scripts/bench/cleaning.py memory NOVELS [--megabytes 1000]
    python scripts/bench/cleaning.py link [--documents 7000000]
    python scripts/bench/cleaning.py model NOVELS NOVELS_VAL [--steps 300] [--seeds 2]

TEXT_DIR holds novels.txt, shakespeare.txt, tang_poems.txt, udhr/ and code/. Each prints JSON lines.
`found`: for each text, the recall of copies with 5% of the words changed; the number of clean
documents removed as copies, with the shortest common subsequence of such a document and its match,
and the longest one of random pairs; the mojibake restored; and the clean texts changed.
`speed`: MB per second of the processor with the default settings, reading and writing included.
`memory`: the peak of a process that cleans this much text, and of one that cleans a tenth of it.
`link`: the peak of the pass that compares all documents, on random signatures with 1% copies. Only
its memory grows with the number of documents; 10 GB are about 7 million.
`model`: bits per byte of other novels after equal steps, on text of which half are copies of few
documents and on what `llmkit clean` leaves of it.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
import regex

from llmkit import evaluate, pretrain
from llmkit.cli import app
from llmkit.config.schema import CleanConfig
from llmkit.data.cleaning.comparing import compared_words, runs_of_words
from llmkit.data.cleaning.mojibake import repaired
from llmkit.data.cleaning.passes import scan
from llmkit.data.cleaning.passes.duplicates import find_copies
from llmkit.data.cleaning.passes.link import link_documents
from llmkit.data.cleaning.passes.signatures import BAND_ROWS, BANDS, signatures_of

PIECE = 1300  # characters of a document cut from a book


def pieces(path: Path) -> list[str]:
    """A book in documents of whole lines."""
    found, held = [], ""
    for line in path.read_text(encoding="utf-8").split("\n"):
        held += line + "\n"
        if len(held) > PIECE:
            found.append(held)
            held = ""
    return found


def texts(directory: Path) -> Iterator[tuple[str, list[str]]]:
    """The documents of each kind."""
    yield "novels", pieces(directory / "novels.txt")
    yield "shakespeare", pieces(directory / "shakespeare.txt")
    poems = (directory / "tang_poems.txt").read_text(encoding="utf-8").split("\n\n")
    yield "poems", [poem for poem in poems if poem.strip()]
    for name, pattern in (("udhr", "udhr/*.utf-8.txt"), ("code", "code/**/*.py")):
        files = sorted(directory.glob(pattern))
        yield name, [text for each in files if (text := each.read_bytes().decode()).strip()]


_WORD = regex.compile(r"\p{Han}|\p{Hiragana}|\p{Katakana}|\p{Thai}|[\p{L}\p{M}\p{N}]+")


def with_changed_words(text: str, share: float, draw: random.Random) -> str:
    """The text with a share of its words (characters of Chinese) replaced by others of it."""
    places = [match.span() for match in _WORD.finditer(text)]
    others = sorted({text[slice(*place)] for place in places})
    for start, stop in sorted(draw.sample(places, max(1, round(share * len(places)))))[::-1]:
        text = text[:start] + draw.choice(others) + text[stop:]
    return text


def copies(documents: Sequence[str]) -> np.ndarray[Any, Any]:
    return find_copies(signatures_of(documents, True), True, 0.6, 0, lambda n: None)


def overlap(one: str, other: str) -> float:
    a, b = (set(runs_of_words(compared_words(text))) for text in (one, other))
    return len(a & b) / max(1, len(a | b))


def in_order(one: str, other: str) -> float:
    """The length of the longest common subsequence, relative to the shorter text."""
    short, long = sorted((one, other), key=len)
    row = [0] * (len(long) + 1)
    for character in short:
        before = 0
        for place, each in enumerate(long, 1):
            longest = before + 1 if character == each else max(row[place], row[place - 1])
            before, row[place] = row[place], longest
    return row[-1] / max(1, len(short))


def mojibake(text: str) -> str | None:
    """The text as its UTF-8 is read in Windows-1252, or Latin-1; None if nothing changes."""
    try:
        wrong = text.encode().decode("cp1252")
    except UnicodeDecodeError:
        wrong = text.encode().decode("latin-1")
    return None if wrong == text else wrong


def found(directory: Path, pairs: int = 200, seed: int = 0) -> Iterator[dict[str, Any]]:
    draw = random.Random(seed)
    for name, documents in texts(directory):
        alone = copies(documents)
        merged = np.flatnonzero(alone.kinds)
        copied = [(documents[at], documents[alone.copied[at]]) for at in merged.tolist()]
        kept = [text for text, kind in zip(documents, alone.kinds, strict=True) if not kind]
        some = draw.sample(kept, min(pairs, len(kept)))
        changed = [with_changed_words(text, 0.05, draw) for text in some]
        together = copies([*some, *changed])
        line: dict[str, Any] = {
            "text": name,
            "documents": len(documents),
            "taken_for_copies": len(merged),
            "clusters": len(set(alone.kept()[merged].tolist())),
            "least_true_overlap_of_them": round(min(starmap(overlap, copied), default=1), 3),
            "least_in_order_of_them": round(min(starmap(in_order, copied), default=1), 3),
            "copies_planted": len(some),
            "recall": round(float((together.kinds[len(some) :] > 0).mean()), 4),
            "originals_removed": int((together.kinds[: len(some)] > 0).sum()),
        }
        if copied:
            strangers = [draw.sample(documents, 2) for _ in range(1000)]
            line["most_in_order_of_others"] = round(max(starmap(in_order, strangers)), 3)
        lines = [row for text in some for row in text.split("\n") if not row.isascii()][:2000]
        wrong = [(row, bad) for row in lines if (bad := mojibake(row))]
        line["mojibake_planted"] = len(wrong)
        if wrong:
            right = sum(repaired(bad)[0] == row for row, bad in wrong)
            line["mojibake_restored"] = round(right / len(wrong), 4)
        line["clean_changed"] = sum(repaired(text)[0] != text for text in documents)
        yield line


def cleaned(text: Path, directory: Path, *keys: str) -> dict[str, Any]:
    """The result of a command in a process of its own, with its time and its peak of memory."""
    line = [
        "clean",
        "--text",
        str(text),
        "--output",
        str(directory),
        "--json",
        "--workers",
        "1",
        *keys,
    ]
    script = (
        "import resource, sys; from llmkit.cli import app; app.run_command(sys.argv[1:]);"
        "own, others = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN));"
        "print(own.ru_maxrss, own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *line], capture_output=True, text=True, check=True
    )
    figures, used = done.stdout.strip().rsplit("\n", 1)
    memory, seconds = used.split()
    return {
        **json.loads(figures), "processor": float(seconds), "memory_MiB": int(memory) // 1024
    }  # fmt: skip


def large(novels: Path, megabytes: float, path: Path) -> None:
    """Rows of about this much text: pieces of novels, each with other words put in its place."""
    documents, draw, size = pieces(novels), random.Random(0), 0
    with path.open("w", encoding="utf-8") as file:
        while size < megabytes * 1e6:
            words = draw.choice(documents).split(" ")
            draw.shuffle(words)
            row = json.dumps({"text": " ".join(words)}, ensure_ascii=False) + "\n"
            file.write(row)
            size += len(row)


def speed(novels: Path, place: Path) -> Iterator[dict[str, Any]]:
    rows = place / "rows.jsonl"
    large(novels, 40, rows)
    small = place / "small.jsonl"
    large(novels, 0.1, small)
    start = cleaned(small, place / "small")["processor"]
    for number in range(2):
        took = cleaned(rows, place / f"out-{number}")
        megabytes = took["before"]["bytes"] / 1e6
        times = json.loads((place / f"out-{number}" / "timing.json").read_text())
        yield {
            "megabytes": round(megabytes, 1),
            "mb_per_second": round(megabytes / (took["processor"] - start), 2),
            "seconds_to_start": round(start, 2),
            "stages": {name: each["seconds"] for name, each in times.items()},
        }


def memory(novels: Path, megabytes: float, place: Path) -> Iterator[dict[str, Any]]:
    for size in (megabytes / 10, megabytes):
        rows = place / f"{size:.0f}.jsonl"
        large(novels, size, rows)
        took = cleaned(rows, place / f"out-{size:.0f}")
        yield {
            "megabytes": size,
            "documents": took["before"]["documents"],
            "memory_MiB": took["memory_MiB"],
            "mb_per_second": round(size / took["processor"], 2),
        }


def link(documents: int, place: Path) -> Iterator[dict[str, Any]]:
    chance, unit, width = np.random.default_rng(0), 100_000, BANDS * BAND_ROWS
    parts = []
    for first in range(0, documents, unit):
        n = min(unit, documents - first)
        parts.append(place / f"scan-{first}")
        parts[-1].mkdir()
        values = chance.integers(0, 1 << 32, (n, width), np.uint32)
        values[n - n // 100 :] = values[: n // 100]
        places = np.stack([np.zeros(n, np.int64), np.arange(1, n + 1)], axis=1)
        for name, array in (
            (scan.VALUES_FILE, values),
            (scan.HASHES_FILE, chance.integers(0, 1 << 63, (n, 2), np.uint64)),
            (scan.COMPARABLE_FILE, np.ones(n, np.bool_)),
            (scan.PLACES_FILE, places),
        ):
            array.tofile(parts[-1] / name)
    (place / "link").mkdir()
    began, peak = time.monotonic(), [0, 0]

    def advance(_: int) -> None:
        status = Path("/proc/self/status").read_text()
        for number, name in enumerate(("RssAnon", "VmRSS")):
            kilobytes = int(status.split(f"{name}:")[1].split()[0])
            peak[number] = max(peak[number], kilobytes >> 10)

    before = [{0: first} for first in range(0, documents, unit)]
    settings = CleanConfig()
    found = link_documents(parts, before, 0, settings, place / "link", advance)
    yield {
        "documents": documents,
        "clusters": found["clusters"],
        "seconds": round(time.monotonic() - began, 1),
        "memory_MiB": peak[0],
        "with_mapped_files_MiB": peak[1],
    }


def model(
    novels: Path, other: Path, steps: int, seeds: int, place: Path
) -> Iterator[dict[str, Any]]:
    draw, documents = random.Random(0), pieces(novels)
    kept = draw.sample(documents, 1400)
    few = [with_changed_words(draw.choice(kept[:28]), 0.05, draw) for _ in kept]
    rows = place / "dirty.jsonl"
    mixed = draw.sample([*kept, *few], len(kept) + len(few))
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in mixed))
    app.run_command(["clean", "--text", str(rows), "--output", str(place / "clean"), "--quiet"])
    tokenizer = pretrain(
        text=str(novels), output_dir=str(place / "tokenizer"), quiet=True,
        tokenizer={"vocab_size": 2048}, train={"max_steps": 1}, model={"size": "tiny"},
    )["model_dir"]  # fmt: skip
    for seed in range(seeds):
        line: dict[str, Any] = {"seed": seed, "steps": steps}
        for name, text in (("dirty", rows), ("clean", place / "clean")):
            run = pretrain(
                text=str(text), output_dir=str(place / f"{name}-{seed}"), seed=seed, quiet=True,
                tokenizer={"name_or_path": tokenizer},
                model={"config": {"hidden_size": 96, "num_hidden_layers": 4}},
                data={"block_size": 128, "validation_fraction": 0},
                train={"max_steps": steps, "global_batch_size": 16, "compile": False},
            )  # fmt: skip
            score = evaluate(model=run["model_dir"], text=str(other), quiet=True)
            line[name] = round(score["bits_per_byte"], 4)
        yield {**line, "gain": round(1 - line["clean"] / line["dirty"], 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("found", "speed", "memory", "link", "model"))
    parser.add_argument("text", type=Path, nargs="?")
    parser.add_argument("other", type=Path, nargs="?")
    parser.add_argument("--megabytes", type=float, default=1000)
    parser.add_argument("--documents", type=int, default=7_000_000)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as made:
        place = Path(made)
        lines = {
            "found": lambda: found(given.text),
            "speed": lambda: speed(given.text, place),
            "memory": lambda: memory(given.text, given.megabytes, place),
            "link": lambda: link(given.documents, place),
            "model": lambda: model(given.text, given.other, given.steps, given.seeds, place),
        }[given.what]()
        for line in lines:
            print(json.dumps(line, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
