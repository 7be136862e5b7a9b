"""Compare the speed of decoding one stream, greedy, with llama.cpp on the same weights.

    python scripts/bench/decode.py MODEL --llama-cpp PYTHON --gguf FILE [FILE ...]
                                   [--threads 1 2] [--tokens 64] [--rounds 5] [--processor]

MODEL is a directory, whose tokenizer is not used; the files come from `llmkit export --format gguf
--type f32|f16|bf16|q8_0`. PYTHON has llama-cpp-python. All sides get a prompt of 32 tokens, which
is not counted, and take turns; prompt lookup is off. `--processor` counts processor time in place
of seconds: for a busy machine, with one thread. Prints a JSON object for each number of threads:
median tokens per second.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from llmkit.config.schema import GenerationConfig
from llmkit.inference.batching import Engine
from llmkit.inference.prompts import Prompt
from llmkit.inference.sampler import Sampler
from llmkit.models import tokenizer as tokenizers
from llmkit.models.kernels import huge_pages, int8, layer_parts

PROMPT = tuple(range(1, 33))


def with_llmkit(engine: Engine, clock: str, tokens: int, threads: int) -> float:
    torch.set_num_threads(threads)
    settings = GenerationConfig(do_sample=False, prompt_lookup_num_tokens=0)
    prompt = Prompt("", PROMPT, seed=0, max_new_tokens=tokens + 1, limit=None)
    # No end tokens: every text has the length that it was asked for.
    engine.add(prompt, Sampler(settings, engine.tokenizer, (), engine.model.device))
    engine.step()
    now = getattr(time, clock)
    begin = now()
    while not engine.is_idle:
        engine.step()
    return tokens / (now() - begin)


def with_llama_cpp(python: Path, gguf: Path, clock: str, tokens: int, threads: int) -> float:
    side = Path(__file__).with_name("llama_cpp_side.py")
    numbers = ("--tokens", tokens, "--threads", threads, "--clock", clock)
    command = [str(each) for each in (python, side, gguf, *numbers)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


def prepared(model: PreTrainedModel) -> Engine:
    tokenizer = tokenizers.train_bpe(["a b c"], 300)
    model = huge_pages.in_huge_pages(layer_parts.store_by_output(model))
    return Engine(model, tokenizer)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--llama-cpp", type=Path)
    parser.add_argument("--gguf", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processor", action="store_true")
    given = parser.parse_args()
    clock = "process_time" if given.processor else "perf_counter"
    full = AutoModelForCausalLM.from_pretrained(given.model, dtype=torch.float32).eval()
    models = {
        "fp32": copy.deepcopy(full),
        "bf16": int8.to_bf16(copy.deepcopy(full)),
        "int8": int8.quantize(full),
    }
    sides: dict[str, Callable[[int, int], float]] = {
        name: partial(with_llmkit, prepared(model), clock) for name, model in models.items()
    }
    for gguf in given.gguf:
        sides[gguf.stem] = partial(with_llama_cpp, given.llama_cpp, gguf, clock)
    for threads in given.threads:
        speeds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(given.rounds + 1):
            for name, side in sides.items():
                speed = side(given.tokens, threads)
                if number:  # the first round warms up
                    speeds[name].append(speed)
        found = {name: round(statistics.median(all), 1) for name, all in speeds.items()}
        print(json.dumps({"threads": threads, "tokens_per_second": found}), flush=True)


if __name__ == "__main__":
    main()
