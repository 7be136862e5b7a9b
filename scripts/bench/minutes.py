"""Bits per byte on held-out text after the same number of minutes, everything included.

Compares llmkit with default settings and transformers.Trainer with a GPT-2-like model of 13.8M
weights (6 layers, 384 wide, byte-level BPE of 8192, blocks of 256), AdamW at 1e-3 decaying linearly
over the steps that fit, estimated from three steps. Prints one JSON line.

    .venv/bin/python scripts/bench/minutes.py TEXT HELD_OUT [--minutes 5] [--bf16] [--batch 8]
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from pathlib import Path

import torch
from time_to_loss import llmkit
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PrinterCallback, Trainer, TrainingArguments

VOCABULARY, BLOCK = 8192, 256
IMPORTS = 5.0
"""Seconds from the start of this process to the start of the clock, imports included."""

WARM, TIMED = 1, 3
"""Number of warm-up steps and of timed steps."""


def trainer(text: Path, held_out: Path, minutes: float, bf16: bool, batch: int) -> dict[str, float]:
    """Trainer for the same number of minutes, tokenizer and evaluation included."""
    end = time.perf_counter() + 60 * minutes - IMPORTS
    bpe = ByteLevelBPETokenizer()
    bpe.train([str(text)], vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"])
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=BLOCK, n_embd=384, n_layer=6, n_head=6,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    blocks = torch.tensor(bpe.encode(text.read_text()).ids).split(BLOCK)[:-1]
    rows = [{"input_ids": ids, "labels": ids} for ids in blocks]

    def train(steps: int, rate: float) -> float:
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(), per_device_train_batch_size=batch, max_steps=steps,
            bf16=bf16, use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to=[],
            logging_steps=10**6, disable_tqdm=True, learning_rate=rate,
        )  # fmt: skip
        start = time.perf_counter()
        run = Trainer(model, arguments, train_dataset=rows)
        run.remove_callback(PrinterCallback)
        run.train()
        return time.perf_counter() - start

    first = train(WARM, rate=0.0)
    per_step = (train(WARM + TIMED, rate=0.0) - first) / TIMED
    start = time.perf_counter()
    held = held_out.read_text()
    judged = judge(model, bpe.encode(held).ids, len(held.encode()))
    judging = time.perf_counter() - start
    steps = int((end - judging - time.perf_counter()) / per_step)
    train(steps, rate=1e-3)
    late = time.perf_counter() + judging - end
    bits = judge(model, bpe.encode(held).ids, len(held.encode()))
    return {"bits_per_byte": bits, "untrained": judged, "steps": steps, "late_seconds": late}


@torch.no_grad()
def judge(model: GPT2LMHeadModel, ids: list[int], n_bytes: int) -> float:
    """Bits per byte in windows of BLOCK without overlap, every token but the first once."""
    model.eval()
    nll = 0.0
    for first in range(0, len(ids) - 1, BLOCK):
        window = torch.tensor(ids[first : first + BLOCK + 1])
        logits = model(window[None, :-1].to(model.device), use_cache=False).logits[0].float()
        nll += functional.cross_entropy(logits.cpu(), window[1:], reduction="sum").item()
    model.train()
    return nll / math.log(2) / n_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("held_out", type=Path)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--bf16", action="store_true", help="train with bf16 in Trainer")
    parser.add_argument("--batch", type=int, default=8, help="batch size of Trainer")
    asked = parser.parse_args()
    theirs = trainer(asked.text, asked.held_out, asked.minutes, asked.bf16, asked.batch)
    ours = llmkit(asked.text, asked.minutes, f"data.validation_files={asked.held_out}")
    lower = 1 - ours["bits_per_byte"] / theirs["bits_per_byte"]
    print(json.dumps({"llmkit": ours, "trainer": theirs, "lower_by": round(lower, 4)}))


if __name__ == "__main__":
    main()
