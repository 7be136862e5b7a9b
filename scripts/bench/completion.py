"""Training on responses compared with training on every token: same engine, model, rows and batch.

Random conversations of 20 to 120 tokens, half of them predicted, are packed into rows of 256 and
isolated from each other; the causal side predicts all of their tokens. The sides take
turns in one process. Prints one JSON line: tokens read per second of each side (median over
rounds), and the ratio.

    .venv/bin/python scripts/bench/completion.py [--rounds 5] [--steps 6] [--compiled]
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace

import numpy as np
import turns
from train import BATCH, BLOCK, VOCABULARY, llmkit
from turns import Round

from llmkit.data.examples import packs
from llmkit.data.examples.packs import Packs, Responses
from llmkit.training.tasks.causal import CausalLoss
from llmkit.training.tasks.responses.completion import CompletionLoss


def rows(share: float) -> Packs:
    """Packed conversations of which this share of the tokens is predicted."""
    chance = np.random.default_rng(0)
    lengths = chance.integers(20, 120, 400)
    starts = np.cumsum([0, *lengths])
    ids = chance.integers(1, VOCABULARY, starts[-1]).astype(np.int32)
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
    scored = place >= np.maximum(1, np.repeat((1 - share) * lengths, lengths))
    given = Responses(ids, scored, starts, lengths, (), 0, int(lengths.max()))
    return packs.packed(given, BLOCK, 0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--compiled", action="store_true")
    asked = parser.parse_args()
    half = rows(0.5)
    everything = replace(half, scored=rows(1.0).scored)
    causal = CausalLoss(1, linear_head=True)
    sides: dict[str, Round] = {
        "completion": llmkit(half, CompletionLoss(linear_head=True), asked.compiled),
        "causal": llmkit(everything, causal, asked.compiled),
    }
    found = turns.take(sides, asked.rounds, asked.steps, BATCH * BLOCK)
    print(json.dumps({**found, **vars(asked)}))


if __name__ == "__main__":
    main()
