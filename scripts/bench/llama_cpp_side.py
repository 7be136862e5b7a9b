"""llama.cpp's speed of decoding one stream: the side of `generate.py` that runs in another Python,
which has llama-cpp-python.

    python scripts/bench/llama_cpp_side.py GGUF --tokens N --threads N --rounds N

Prints a list of tokens per second, one figure per round, the prompt of 32 tokens excluded.
"""

from __future__ import annotations

import argparse
import json
import time

import llama_cpp
import numpy as np

PROMPT = 32


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("gguf")
    for name in ("tokens", "threads", "rounds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    given = parser.parse_args()
    model = llama_cpp.Llama(
        given.gguf, n_ctx=1024, n_threads=given.threads, n_threads_batch=given.threads,
        verbose=False, logits_all=False,
    )  # fmt: skip
    speeds = []
    for _ in range(given.rounds + 1):
        model.reset()
        model.eval(list(range(1, 1 + PROMPT)))
        begin = time.perf_counter()
        for _ in range(given.tokens):
            logits = llama_cpp.llama_get_logits_ith(model.ctx, -1)
            values = np.ctypeslib.as_array(logits, shape=(model.n_vocab(),))
            model.eval([int(values.argmax())])
        speeds.append(given.tokens / (time.perf_counter() - begin))
    print(json.dumps(speeds[1:]))


if __name__ == "__main__":
    main()
