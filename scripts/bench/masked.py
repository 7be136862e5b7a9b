"""Masked pretraining compared with causal pretraining: same engine, model size, text and batch.

llmkit's Transformer (6 layers, 384 wide, vocabulary 8192) on blocks of 256, 16 sequences a step,
bf16, AdamW; rows are sampled and masked as in `llmkit pretrain`. With `--packed` the text consists
of isolated documents of 20 to 400 tokens. The sides take turns in one process.
Prints one JSON line: tokens read per second of each side (median over rounds), and the ratio.

    .venv/bin/python scripts/bench/masked.py [--rounds 9] [--steps 3] [--packed] [--compiled]
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import numpy as np
import turns
from train import BATCH, BLOCK, DEVICE, VOCABULARY, llmkit
from transformers import PreTrainedModel
from turns import Round

from llmkit.data.examples import order
from llmkit.data.examples.blocks import Blocks, MaskedBlocks, Vocabulary
from llmkit.data.text.token_file import TokenFile
from llmkit.models import build, logits, packing
from llmkit.training.tasks.masked import MaskedLoss

OPENING, CLOSING, MASK, PAD = range(4)
TOKENS = 1_000_000


def tokens(packed: bool) -> TokenFile:
    """Random tokens of one document, or of many."""
    chance = np.random.default_rng(0)
    ids = chance.integers(4, VOCABULARY, TOKENS).astype(np.uint16)
    lengths = chance.integers(20, 400, TOKENS // 400) if packed else np.array([TOKENS])
    ends = np.cumsum(lengths)
    starts = ends - lengths
    ids = ids[: ends[-1]]
    ids[starts], ids[ends - 1] = OPENING, CLOSING
    return TokenFile(
        ids, starts, lengths, len(ids), opening=OPENING, closing=CLOSING, max_id=VOCABULARY - 1,
        blank=0, undecodable=0, lost=0.0, fingerprint="",
    )  # fmt: skip


def model(purpose: build.Purpose) -> PreTrainedModel:
    """The same model size for both."""
    shape = {"hidden_size": 384, "num_hidden_layers": 6}
    special = {"pad_token_id": PAD}
    config = build.model_config("transformer", shape, VOCABULARY, BLOCK, special, purpose)
    return build.new_model(config, 0, purpose).to(DEVICE)


def causal(asked: argparse.Namespace) -> Round:
    """Each token from those before it."""
    examples = Blocks(tokens(asked.packed), BLOCK)
    draw = partial(order.rows_of_step, n_examples=len(examples), global_batch_size=BATCH, seed=0)
    own = model(build.LANGUAGE_MODEL)
    return llmkit(examples, None, asked.compiled, draw, own)


def masked(asked: argparse.Namespace) -> Round:
    """Hidden tokens from those around them."""
    special = np.arange(VOCABULARY) < 4
    vocabulary = Vocabulary(MASK, PAD, special)
    file = tokens(asked.packed)
    examples = MaskedBlocks(file, BLOCK, True, asked.probability, vocabulary, seed="0")
    own = model(build.MASKED_MODEL)
    task = MaskedLoss(logits.split_head(own), packing.document_masks(own))
    draw = partial(
        order.occurrences_of_step, n_examples=len(examples), global_batch_size=BATCH, seed=0
    )
    return llmkit(examples, task, asked.compiled, draw, own)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--probability", type=float, default=0.3)
    parser.add_argument("--packed", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    asked = parser.parse_args()
    sides = {"masked": masked(asked), "causal": causal(asked)}
    found = turns.take(sides, asked.rounds, asked.steps, BATCH * BLOCK)
    print(json.dumps({**found, **vars(asked)}))


if __name__ == "__main__":
    main()
