"""A short run from its model to its end, beside transformers.Trainer in bf16: train.py's llama,
16 sequences of 256 tokens a step, everything else by default (Muon, compilation).

llmkit runs with an empty cache, and again after a run of two steps has compiled the same code;
measuring the model, compiling, checkpoints and a small validation count. Of Trainer its steps count
alone. Prints one JSON line.

    .venv/bin/python scripts/bench/short_runs.py TEXT [--steps 40] [--trainer-steps 10]
        [--rounds 1] [KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import train
import turns

from llmkit.distributed import device

BYTES_PER_TOKEN = 6
"""More than a token of 8192 has: a run shall not repeat its text."""

SHAPE = {
    "hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6,
    "num_attention_heads": 6, "num_key_value_heads": 6, "tie_word_embeddings": "true",
}  # fmt: skip


def run(text: Path, folder: Path, steps: int, overrides: list[str]) -> dict[str, Any]:
    """A run in a process of its own: its seconds, those of compiling, and whether it compiled."""
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        keys = [f"model.config.{key}={value}" for key, value in SHAPE.items()]
        command = [
            sys.executable, "-m", "llmkit", "pretrain", "--text", str(text), "--json", *keys,
            "model.architecture=llama", f"tokenizer.vocab_size={train.VOCABULARY}",
            f"data.block_size={train.BLOCK}", f"train.global_batch_size={train.BATCH}",
            f"train.max_steps={steps}", f"data.validation_files={folder / 'held_out.txt'}",
            "--output-dir", f"{directory}/run", *overrides,
        ]  # fmt: skip
        surroundings = {k: v for k, v in os.environ.items() if k != "TORCHINDUCTOR_CACHE_DIR"}
        surroundings |= {"LLMKIT_CACHE": str(folder / "cache"), "COLUMNS": "1000"}
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=surroundings)
    result, said = json.loads(done.stdout), done.stderr
    compiling = re.search(r"after (\d+) s of compiling", said)
    decision = re.search(r"compile (?:true|false) \([^)]*\)", said)
    return {
        "seconds": result["seconds"],
        "tokens_per_second": result["tokens_per_second"],
        "compiling_seconds": int(compiling[1]) if compiling else None,
        "decision": decision and decision[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--trainer-steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    asked, overrides = parser.parse_known_args()
    if asked.serve:
        turns.serve(train.trainer(train.Stream(), bf16=True))
        return
    peer = turns.Process([sys.executable, __file__, str(asked.text), "--serve"])
    peer(1)
    first, compiled, again, others = [], [], [], []
    tokens = train.BATCH * train.BLOCK
    for _ in range(asked.rounds):
        with tempfile.TemporaryDirectory() as directory:
            folder = Path(directory)
            whole = asked.text.read_text(encoding="utf-8")
            text = folder / "text.txt"
            text.write_text(whole[2000 : 2000 + asked.steps * tokens * BYTES_PER_TOKEN])
            (folder / "held_out.txt").write_text(whole[:2000])
            first.append(run(text, folder, asked.steps, overrides))
            others.append(peer(asked.trainer_steps) / asked.trainer_steps)
            compiled.append(run(text, folder, 2, [*overrides, "train.compile=true"]))
            again.append(run(text, folder, asked.steps, overrides))
    trainer = statistics.median(others) * asked.steps
    ratios = [
        round(trainer / statistics.median(each["seconds"] for each in runs), 3)
        for runs in (first, again)
    ]
    rate = device.matrix_rate(train.DEVICE, "bf16")
    found = {
        "first": first,
        "compiled": compiled,
        "again": again,
        "trainer_seconds": trainer,
        "matrix_rate": rate,
    }
    print(json.dumps({"ratios_first_and_again": ratios, **found}))


if __name__ == "__main__":
    main()
