"""Time to 2.72 bits per byte on the last tenth of a text: llmkit with default settings, compared
with a character-level loop in nanoGPT's documented CPU setting (4 layers, 128 wide, context 64,
batch 12, AdamW 1e-3, 2,000 steps, no dropout). Prints one JSON line.

    .venv/bin/python scripts/bench/time_to_loss.py shakespeare.txt [--minutes 0.2]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel

CONTEXT, BATCH, STEPS, TARGET = 64, 12, 2000, 2.72


def characters(path: Path) -> dict[str, float]:
    """Training seconds and bits per byte of the plain loop."""
    text = path.read_bytes().decode()
    names = {character: i for i, character in enumerate(sorted(set(text)))}
    ids = torch.tensor([names[character] for character in text])
    cut = len(ids) * 9 // 10
    train, held_out = ids[:cut], ids[cut:]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(names), n_positions=CONTEXT, n_embd=128, n_layer=4, n_head=4,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), fused=True)
    start = time.perf_counter()
    for step in range(STEPS):
        rate = min(1.0, (step + 1) / 100) * (0.1 + 0.45 * (1 + math.cos(math.pi * step / STEPS)))
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * rate
        first = torch.randint(len(train) - CONTEXT - 1, (BATCH,))
        rows = first[:, None] + torch.arange(CONTEXT + 1)
        logits = model(train[rows[:, :-1]], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), train[rows[:, 1:]].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - start
    model.eval()
    nll = 0.0
    windows = (len(held_out) - 1) // CONTEXT
    with torch.no_grad():
        for part in torch.arange(windows).split(64):
            rows = part[:, None] * CONTEXT + torch.arange(CONTEXT + 1)
            logits = model(held_out[rows[:, :-1]], use_cache=False).logits
            targets = held_out[rows[:, 1:]].flatten()
            nll += functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum").item()
    return {"training_seconds": seconds, "bits_per_byte": nll / math.log(2) / (windows * CONTEXT)}


def llmkit(path: Path, minutes: float, *overrides: str) -> dict[str, float]:
    """The whole command: imports, tokenizer and all, with an empty cache."""
    with tempfile.TemporaryDirectory() as directory:
        command = [
            sys.executable, "-m", "llmkit", "pretrain", "--text", str(path), "--json", "--quiet",
            f"train.max_minutes={minutes}", "--output-dir", f"{directory}/run", *overrides,
        ]  # fmt: skip
        start = time.perf_counter()
        done = subprocess.run(
            command, check=True, capture_output=True, text=True,
            env={**os.environ, "LLMKIT_CACHE": f"{directory}/cache"},
        )  # fmt: skip
        seconds = time.perf_counter() - start
        result = json.loads(done.stdout)
        last = Path(directory, "run", "metrics.jsonl").read_text().splitlines()
    tokens = max(json.loads(line).get("tokens", 0) for line in last)
    return {
        "whole_command_seconds": seconds,
        "training_seconds": tokens / result["tokens_per_second"],
        "bits_per_byte": result["validation"]["bits_per_byte"],
        "parameters": result["parameters"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--minutes", type=float, default=0.2)
    asked = parser.parse_args()
    ours, theirs = llmkit(asked.text, asked.minutes), characters(asked.text)
    print(
        json.dumps(
            {
                "llmkit": ours,
                "character_level_loop": theirs,
                "target_bits_per_byte": TARGET,
                "training_ratio": theirs["training_seconds"] / ours["training_seconds"],
                "whole_command_ratio": theirs["training_seconds"] / ours["whole_command_seconds"],
            }
        )
    )


if __name__ == "__main__":
    main()
