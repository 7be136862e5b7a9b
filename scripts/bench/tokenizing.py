"""Compare llmkit with datasets.map and grouping, from a text file to token blocks.

    python scripts/bench/tokenizing.py FILE [--tokenizer DIRECTORY] [--rounds N] [--megabytes N]

The sides run in separate processes, in turn, with an empty cache; the file is repeated up to the
given size. Prints one JSON line: median seconds and peak memory of each side, and their ratio. The
time excludes imports and loading the tokenizer. Without `--tokenizer`, one is trained first.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

BLOCK = 1024


def with_llmkit(text: Path, tokenizer: Path, cache: Path) -> Callable[[], int]:
    from llmkit.config.schema import Config
    from llmkit.data.examples.blocks import Blocks
    from llmkit.data.readers.files import Sources
    from llmkit.data.text.prepare import prepare_domains
    from llmkit.models import tokenizer as tokenizers

    @contextmanager
    def watch(label: str, total: int) -> Iterator[Callable[[int], None]]:
        yield lambda n_bytes: None

    os.environ["LLMKIT_CACHE"] = str(cache)
    data = {"train_files": str(text), "validation_fraction": 0}
    config = Config.model_validate({"data": data})
    loaded = tokenizers.load_tokenizer(str(tokenizer))

    def run() -> int:
        [prepared] = prepare_domains(
            config, Sources(config), loaded, watch, lambda line: None
        ).values()
        return len(Blocks(prepared.train, BLOCK))

    return run


def with_datasets(text: Path, tokenizer: Path, cache: Path) -> Callable[[], int]:
    from datasets import disable_progress_bars, load_dataset
    from transformers import AutoTokenizer

    disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(tokenizer)

    def encode(rows: dict[str, Any]) -> dict[str, Any]:
        return {"input_ids": loaded(rows["text"], verbose=False)["input_ids"]}

    def group(rows: dict[str, Any]) -> dict[str, Any]:
        ids = list(chain.from_iterable(rows["input_ids"]))
        return {"input_ids": [ids[i : i + BLOCK] for i in range(0, len(ids) - BLOCK + 1, BLOCK)]}

    def run() -> int:
        lines = load_dataset("text", data_files=str(text), split="train", cache_dir=str(cache))
        encoded = lines.map(encode, batched=True, remove_columns=["text"])
        return len(encoded.map(group, batched=True))

    return run


SIDES = {"llmkit": with_llmkit, "datasets": with_datasets}


def measure(side: str, text: Path, tokenizer: Path) -> dict[str, float]:
    """Run one side in this process."""
    with tempfile.TemporaryDirectory() as cache:
        run = SIDES[side](text, tokenizer, Path(cache))
        started = time.perf_counter()
        blocks = run()
        seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": seconds, "peak_mib": peak, "blocks": blocks}


def in_process(side: str, text: Path, tokenizer: Path) -> dict[str, float]:
    """Run one side in a process of its own."""
    command = [sys.executable, __file__, str(text), "--tokenizer", str(tokenizer), "--side", side]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def compare(text: Path, tokenizer: Path | None, rounds: int, megabytes: int) -> dict[str, Any]:
    """Run both sides in turn, on as much text as was asked for."""
    with tempfile.TemporaryDirectory() as directory:
        content = text.read_bytes()
        large = Path(directory, "large.txt")
        large.write_bytes(content * max(1, megabytes * 1_000_000 // len(content)))
        if not tokenizer:
            from llmkit.models.tokenizer import train_bpe

            tokenizer = Path(directory, "tokenizer")
            train_bpe(content.decode().splitlines(keepends=True), 8192).save_pretrained(tokenizer)
        runs = [{side: in_process(side, large, tokenizer) for side in SIDES} for _ in range(rounds)]
        n_bytes = large.stat().st_size
    report: dict[str, Any] = {"bytes": n_bytes, "rounds": rounds}
    for side in SIDES:
        for figure in ("seconds", "peak_mib", "blocks"):
            median = statistics.median(run[side][figure] for run in runs)
            report[f"{side}_{figure}"] = round(median, 2)
    report["ratio"] = round(report["datasets_seconds"] / report["llmkit_seconds"], 2)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=10)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        result = measure(options.side, options.text, options.tokenizer)
    else:
        result = compare(options.text, options.tokenizer, options.rounds, options.megabytes)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
