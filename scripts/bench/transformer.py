"""Speed of llmkit's Transformer and transformers' GPT-2 of the same size: forward and backward.

Both have the same weights (6 layers, 384 wide, vocabulary 8192, block 256) and give the same
logits. The sides take turns in one process, so that a busy machine is busy for both. Prints one
JSON line: tokens/s of each side (median over rounds) and the ratio.

    .venv/bin/python scripts/bench/transformer.py [--rounds 9] [--compile] [--hidden-size 384] ...
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch
import turns
from torch.nn import functional
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from turns import Round

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.models.weights import from_gpt2

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def gpt2(asked: argparse.Namespace) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=asked.vocabulary, n_positions=asked.block, n_embd=asked.hidden_size,
        n_layer=asked.layers, n_head=asked.hidden_size // 64, attn_pdrop=asked.dropout,
        resid_pdrop=asked.dropout, embd_pdrop=asked.dropout, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def round_of(model: PreTrainedModel, ids: torch.Tensor, compiled: bool) -> Round:
    """Computes loss and gradients without updating weights."""
    model = model.to(DEVICE).train()

    def loss_of(ids: torch.Tensor) -> torch.Tensor:
        logits = model(input_ids=ids[:, :-1], use_cache=False).logits
        return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    compute = torch.compile(loss_of, dynamic=False) if compiled else loss_of

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            compute(ids).backward()
            model.zero_grad(set_to_none=True)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    for name, value in {"hidden-size": 384, "layers": 6, "batch": 8}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in {"block": 256, "vocabulary": 8192}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--dropout", type=float, default=0.0)
    asked = parser.parse_args()
    theirs = gpt2(asked)
    ids = torch.randint(asked.vocabulary, (asked.batch, asked.block + 1), device=DEVICE)
    models = {"llmkit": from_gpt2(theirs), "gpt2": theirs}
    sides = {name: round_of(model, ids, asked.compile) for name, model in models.items()}
    found = turns.take(sides, asked.rounds, asked.steps, asked.batch * asked.block)
    print(json.dumps({**found, **vars(asked)}))


if __name__ == "__main__":
    main()
