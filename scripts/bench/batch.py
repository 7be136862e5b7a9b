"""Tokens per second of several texts at once, greedy in fp32, per second of processor time.

    PYTHONPATH=CHECKOUT/src python scripts/bench/batch.py MODEL [--prompts 16] [--tokens 24]

Runs with any version of llmkit, to compare an older one. Prompts have 4 to 64 tokens, and texts 8
to twice `--tokens`; prompts are included. One thread; prints the fastest of three rounds.
"""

from __future__ import annotations

import argparse
import random
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from llmkit.config.schema import GenerationConfig
from llmkit.inference import generate
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.models import tokenizer as tokenizers


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=24)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    engine = Engine(model, tokenizers.train_bpe(["a b c"], 300))
    sampler = Sampler(GenerationConfig(do_sample=False), engine.tokenizer, (), model.device)
    chance, prompts = random.Random(0), []
    for occurrence in range(given.prompts):
        ids = tuple(chance.randrange(1, 256) for _ in range(chance.randint(4, 64)))
        new = chance.randint(8, 2 * given.tokens)
        own = Prompt("", ids, seed=0, max_new_tokens=new, limit=512, occurrence=occurrence)
        prompts.append(own)
    speeds = []
    for _ in range(3):
        begin = time.process_time()
        samples = generate.generate_samples(engine, prompts, sampler)
        count = sum(len(sample.tokens) for sample in samples)
        speeds.append(count / (time.process_time() - begin))
    print(round(max(speeds), 1))


if __name__ == "__main__":
    main()
