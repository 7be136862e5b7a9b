"""Compare the speed of llmkit and transformers' generate, with a GPT-2 of random weights.

    python scripts/bench/generate.py [--layers 12] [--width 768] [--tokens 64] [--prompts 256]
                                     [--rounds 3] [--threads N] [--model DIRECTORY] [--processor]

One stream: a prompt of 32 tokens, greedy, in fp32, bf16 and with int8 weights. Many: prompts of 4
to 64 tokens, each with 8 to twice `--tokens` new tokens; transformers gets batches of 16 sorted by
length, each up to its longest text. `forward` is llmkit with the model's own forward pass in place
of the compiled step. The sides take turns in one process, after one warm-up round. `--model` names
another model, `--processor` counts processor time in place of seconds: for a busy machine, with one
thread. Prints one JSON object: median tokens per second, and ratios.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from llmkit.config.schema import GenerationConfig
from llmkit.inference import generate
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.models import tokenizer as tokenizers
from llmkit.models.kernels import int8

VOCABULARY, BATCH = 50257, 16


def build(layers: int, width: int) -> PreTrainedModel:
    torch.manual_seed(0)
    shape = GPT2Config(
        n_layer=layers, n_embd=width, n_head=max(1, width // 64), eos_token_id=None,
        bos_token_id=None, vocab_size=VOCABULARY,
    )  # fmt: skip
    return GPT2LMHeadModel(shape).eval()


def with_llmkit(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompts: list[Prompt],
    is_compiled: bool = True,
) -> Callable[[], int]:
    engine = Engine(model, tokenizer)
    if not is_compiled:
        engine._batch.forward._step = None
    # No end tokens: every text has the length that it was asked for.
    sampler = Sampler(GenerationConfig(do_sample=False), tokenizer, (), model.device)

    def run() -> int:
        return sum(
            len(sample.tokens) for sample in generate.generate_samples(engine, prompts, sampler)
        )

    return run


def with_transformers(model: PreTrainedModel, prompts: list[Prompt]) -> Callable[[], int]:
    ordered = sorted(prompts, key=lambda prompt: len(prompt.ids))
    batches = [ordered[i : i + BATCH] for i in range(0, len(ordered), BATCH)]

    def run() -> int:
        for batch in batches:
            longest = max(len(prompt.ids) for prompt in batch)
            pads = [longest - len(prompt.ids) for prompt in batch]
            rows = [[0] * pad + list(p.ids) for pad, p in zip(pads, batch, strict=True)]
            model.generate(
                torch.tensor(rows),
                attention_mask=torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads]),
                max_new_tokens=max(prompt.max_new_tokens for prompt in batch),
                do_sample=False,
                pad_token_id=0,
            )
        return sum(prompt.max_new_tokens for prompt in prompts)

    return run


def prompt_of(length: int, new: int, chance: random.Random) -> Prompt:
    ids = tuple(chance.randrange(1, 256) for _ in range(length))
    return Prompt("", ids, seed=0, max_new_tokens=new, limit=1024)


def measure(
    sides: dict[str, Callable[[], int]], rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, run in sides.items():
            began = clock()
            tokens = run()
            if number:
                speeds[name].append(tokens / (clock() - began))
    return {name: round(statistics.median(values), 2) for name, values in speeds.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("layers", 12), ("width", 768), ("tokens", 64), ("prompts", 256)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--model", type=Path)
    parser.add_argument("--processor", action="store_true")
    given = parser.parse_args()
    clock = time.process_time if given.processor else time.perf_counter
    torch.set_num_threads(given.threads)
    chance = random.Random(0)
    tokenizer = tokenizers.train_bpe(["a b c"], 300)
    full = build(given.layers, given.width)
    if given.model:
        full = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    half = int8.to_bf16(copy.deepcopy(full))
    small = int8.quantize(copy.deepcopy(full))

    one = [prompt_of(32, given.tokens, chance)]
    stream = measure(
        {
            "llmkit_fp32": with_llmkit(full, tokenizer, one),
            "forward_fp32": with_llmkit(full, tokenizer, one, is_compiled=False),
            "transformers_fp32": with_transformers(full, one),
            "llmkit_bf16": with_llmkit(half, tokenizer, one),
            "forward_bf16": with_llmkit(half, tokenizer, one, is_compiled=False),
            "transformers_bf16": with_transformers(half, one),
            "llmkit_int8": with_llmkit(small, tokenizer, one),
            "forward_int8": with_llmkit(small, tokenizer, one, is_compiled=False),
        },
        given.rounds,
        clock,
    )
    lengths = [
        (chance.randint(4, 64), chance.randint(8, 2 * given.tokens)) for _ in range(given.prompts)
    ]
    several = [prompt_of(length, new, chance) for length, new in lengths]
    several = [replace(prompt, occurrence=n) for n, prompt in enumerate(several)]
    many = measure(
        {
            "llmkit_fp32": with_llmkit(full, tokenizer, several),
            "forward_fp32": with_llmkit(full, tokenizer, several, is_compiled=False),
            "transformers_fp32": with_transformers(full, several),
        },
        max(1, given.rounds // 3),
        clock,
    )
    ratios = {
        **{
            f"stream_{kind}_to_forward": stream[f"llmkit_{kind}"] / stream[f"forward_{kind}"]
            for kind in ("fp32", "bf16", "int8")
        },
        "many_fp32_to_forward": many["llmkit_fp32"] / many["forward_fp32"],
        "stream_fp32": stream["llmkit_fp32"] / stream["transformers_fp32"],
        "stream_bf16": stream["llmkit_bf16"] / stream["transformers_bf16"],
        "stream_int8_to_fp32": stream["llmkit_int8"] / stream["transformers_fp32"],
        "stream_int8_to_bf16": stream["llmkit_int8"] / stream["transformers_bf16"],
        "many_fp32": many["llmkit_fp32"] / many["transformers_fp32"],
    }
    rounded = {name: round(value, 3) for name, value in ratios.items()}
    print(
        json.dumps({"stream": stream, "many": many, "ratios": rounded, **vars(given)}, default=str)
    )


if __name__ == "__main__":
    main()
