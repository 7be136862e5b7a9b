"""llama.cpp's speed of decoding one stream: the side of `decode.py` that runs in another Python,
which has llama-cpp-python.

    python scripts/bench/llama_cpp_side.py GGUF --tokens N --threads N --clock NAME

The clock is `perf_counter` or `process_time`. Prints tokens per second, the prompt of 32 tokens
excluded, after a round that warms up.
"""

from __future__ import annotations

import argparse
import time

import llama_cpp
import numpy as np

PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    for name in ("tokens", "threads"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--clock", required=True)
    given = parser.parse_args()
    model = llama_cpp.Llama(
        given.gguf, n_ctx=512, n_threads=given.threads, n_threads_batch=given.threads,
        verbose=False, logits_all=False,
    )  # fmt: skip
    now = getattr(time, given.clock)
    speed = 0.0
    for _ in range(2):
        model.reset()
        model.eval(list(range(1, 1 + PROMPT)))
        begin = now()
        for _ in range(given.tokens):
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            values = np.ctypeslib.as_array(logits, shape=(model.n_vocab(),))
            model.eval([int(values.argmax())])
        speed = given.tokens / (now() - begin)
    print(speed)


if __name__ == "__main__":
    main()
