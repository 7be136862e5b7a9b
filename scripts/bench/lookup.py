"""Compare the speed of one stream with and without prompt lookup.

    python scripts/bench/lookup.py MODEL [--prompt TEXT] [--tokens 128] [--rounds 5] [--threads 1]
                                   [--precision fp32|bf16|int8]

`new`: stories sampled from the prompt, which repeat little. `again`: the same stories as prompts,
followed by their first words, so that the model copies. `greedy`: the most likely text. Sides take
turns. Prints one JSON object: for each, tokens per step, tokens per second, and the median of the
rounds' ratios; and the ratio of a step of several tokens to a step of one.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from llmkit.config.schema import GenerationConfig
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.models.kernels import int8, layer_parts

LOOKUP, STORIES = 8, 4
CONVERT = {"fp32": lambda model: model, "bf16": int8.to_bf16, "int8": int8.quantize}


def write(engine: Engine, ids: list[int], tokens: int, seed: int, **settings: object) -> tuple:
    """The tokens of a text, its number of steps, and its tokens per second after the first."""
    sampler = Sampler(GenerationConfig(**settings), engine.tokenizer, (), engine.model.device)
    (sequence,) = engine.add(Prompt("", tuple(ids), seed, tokens, limit=None), sampler)
    engine.step()
    steps, begin = 0, time.perf_counter()
    while not engine.is_idle:
        engine.step()
        steps += 1
    speed = (len(sequence.tokens) - 1) / (time.perf_counter() - begin)
    return sequence.tokens, steps, speed


def compare(engine: Engine, prompts: list[list[int]], tokens: int, rounds: int, **own) -> dict:
    speeds: dict[int, list[float]] = {LOOKUP: [], 0: []}
    per_step, ratios = [], []
    for number in range(rounds + 1):
        for seed, ids in enumerate(prompts):
            made = {}
            for most in (LOOKUP, 0) if number % 2 else (0, LOOKUP):
                lookup = {"prompt_lookup_num_tokens": most}
                made[most] = write(engine, ids, tokens, seed, **lookup, **own)
            if made[LOOKUP][0] != made[0][0]:
                raise SystemExit("the texts differ")
            if number:
                per_step.append((tokens - 1) / made[LOOKUP][1])
                ratios.append(made[LOOKUP][2] / made[0][2])
                for most in speeds:
                    speeds[most].append(made[most][2])
    return {
        "tokens_per_step": round(statistics.mean(per_step), 2),
        "tokens_per_second": {most: round(statistics.median(all)) for most, all in speeds.items()},
        "ratio": round(statistics.median(ratios), 3),
    }


def costs(engine: Engine, ids: list[int]) -> dict[int, float]:
    """The time of steps of 1 to 9 tokens, the fastest of 30, in steps of one."""
    forward = engine._batch.forward
    _, cache = forward.of_prompts([tuple(ids)])
    seconds = {}
    for count in (1, 2, 3, 5, 9):
        taken = []
        for _ in range(30):
            cache.make_room(count)
            begin = time.perf_counter()
            forward.of_newest(torch.ones(1, count, dtype=torch.long), cache)
            taken.append(time.perf_counter() - begin)
            cache.shorten(count)
        seconds[count] = min(taken)
    return {count: round(each / seconds[1], 2) for count, each in seconds.items()}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--prompt", default="Once upon a time")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=CONVERT, default="fp32")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tokenizer = AutoTokenizer.from_pretrained(given.model)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    engine = Engine(layer_parts.store_by_output(CONVERT[given.precision](model)), tokenizer)
    ids = tokenizer(given.prompt)["input_ids"]
    stories = [ids + write(engine, ids, given.tokens, seed)[0] for seed in range(STORIES)]
    common = (given.tokens, given.rounds)
    found = {
        "new": compare(engine, [ids] * STORIES, *common),
        "again": compare(engine, [story + story[:16] for story in stories], *common),
        "greedy": compare(engine, [ids], *common, do_sample=False),
        "steps": costs(engine, stories[0]),
    }
    print(json.dumps({**found, **vars(given)}, default=str))


if __name__ == "__main__":
    main()
