"""Training speed on a mixture of three domains compared with plain text.

The llama of `train.py` (6 layers, 384 wide, vocabulary 8192), blocks of 256, 16 sequences a step;
rows are sampled as in `llmkit pretrain`, from token files of a million random tokens. The
sides take turns in one process, so that a busy machine is busy for both. Prints one JSON line:
tokens/s of each side (median over rounds) and the ratio.

    .venv/bin/python scripts/bench/mixture.py [--rounds 9] [--steps 3]
"""

from __future__ import annotations

import argparse
import json
from functools import partial

import numpy as np
import turns
from train import BATCH, BLOCK, VOCABULARY, llmkit
from turns import Round

from llmkit.data.examples import order
from llmkit.data.examples.blocks import Blocks
from llmkit.data.examples.mixture import Mixture
from llmkit.data.text.token_file import TokenFile

SHARES = {"first": 0.6, "second": 0.3, "third": 0.1}
TOKENS = 1_000_000


def tokens(n: int, seed: int) -> TokenFile:
    """Random tokens of one document."""
    ids = np.random.default_rng(seed).integers(0, VOCABULARY, n).astype(np.uint16)
    start, size = np.zeros(1, np.int64), np.array([4 * n])
    return TokenFile(
        ids, start, size, 4 * n, opening=0, closing=0, max_id=VOCABULARY - 1, blank=0,
        undecodable=0, lost=0.0, fingerprint="",
    )  # fmt: skip


def plain() -> Round:
    """Blocks of one text."""
    examples = Blocks(tokens(TOKENS, 0), BLOCK)
    draw = partial(order.rows_of_step, n_examples=len(examples), global_batch_size=BATCH, seed=0)
    return llmkit(examples, rows_of_step=draw)


def mixture() -> Round:
    """Blocks of three domains."""
    blocks = {name: Blocks(tokens(TOKENS // 3, seed), BLOCK) for seed, name in enumerate(SHARES)}
    examples = Mixture(blocks, list(SHARES.values()))
    draw = partial(examples.rows_of_step, global_batch_size=BATCH, seed=0)
    return llmkit(examples, rows_of_step=draw)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    asked = parser.parse_args()
    sides = {"mixture": mixture(), "plain": plain()}
    found = turns.take(sides, asked.rounds, asked.steps, BATCH * BLOCK)
    print(json.dumps({**found, **vars(asked)}))


if __name__ == "__main__":
    main()
