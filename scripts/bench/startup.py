"""Start-up times: `llmkit --help` compared with litgpt's, refusals of missing input (`refused_*`),
and the first step of a run compared with importing torch and transformers, by name alone
(`imports`) or with a model class (`model_class`), which transformers imports lazily; with a model,
eight tokens after a short prompt (`generate`) compared with loading model and tokenizer in plain
transformers (`load`).

    python scripts/bench/startup.py TEXT [--rounds 5] [--litgpt COMMAND] [--model DIRECTORY]

The run is `llmkit pretrain --text TEXT train.max_minutes=0.5` with an empty cache, so that its
tokenizer is trained and the text tokenised before the first step; `again` is the same with the text
in the cache. The processes take turns. Prints one JSON line: seconds (median
over the rounds) and ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

BEGINS = "; precision "
"""Printed when every `auto` is resolved, before the first step."""

IMPORTS = "import torch, transformers"
MODEL_CLASS = "import torch; from transformers import LlamaForCausalLM"
LOAD = """
import sys
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
"""

REFUSALS = {
    "refused_option": ("pretrain", "--lr", "1"),
    "refused_key": ("pretrain", "lr=1"),
    "refused_text": ("pretrain", "--text", "runs/no-such-text.txt"),
    "refused_model": ("generate", "--model", "runs/no-such-run", "--prompt", "a"),
    "refused_prompt": ("generate", "--model", "runs/no-such-run"),
}
"""Command lines with missing input, by what is missing."""


def whole(*command: str, code: int = 0) -> float:
    """Seconds of a command from start to end; `code` 1 accepts any failure."""
    begin = time.perf_counter()
    done = subprocess.run(command, check=False, capture_output=True, stdin=subprocess.DEVNULL)
    seconds = time.perf_counter() - begin
    if bool(done.returncode) != bool(code):
        raise SystemExit(f"{command} ended with {done.returncode}")
    return seconds


def refusal(arguments: Sequence[str]) -> Callable[[], float]:
    """Seconds until a command is refused."""
    return lambda: whole(sys.executable, "-m", "llmkit", *arguments, code=1)


def first_step(text: Path, cache: str) -> float:
    """Seconds until the first step of a run begins; it is stopped there."""
    command = [sys.executable, "-m", "llmkit", "pretrain", "--text", str(text)]
    with tempfile.TemporaryDirectory() as directory:
        begin = time.perf_counter()
        process = subprocess.Popen(
            [*command, "train.max_minutes=0.5", "--output-dir", f"{directory}/run"],
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "LLMKIT_CACHE": cache},
        )  # fmt: skip
        with process:
            assert process.stderr is not None
            said = next((line for line in process.stderr if BEGINS in line), None)
            seconds = time.perf_counter() - begin
            process.kill()
    if said is None:
        raise SystemExit("the run ended before its first step")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("text", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--litgpt", metavar="COMMAND")
    parser.add_argument("--model", metavar="DIRECTORY")
    asked = parser.parse_args()

    def fresh() -> float:
        with tempfile.TemporaryDirectory() as cache:
            return first_step(asked.text, cache)

    with tempfile.TemporaryDirectory() as cache:
        sides: dict[str, Callable[[], float]] = {
            "help": lambda: whole(sys.executable, "-m", "llmkit", "--help"),
            **{name: refusal(arguments) for name, arguments in REFUSALS.items()},
            "imports": lambda: whole(sys.executable, "-c", IMPORTS),
            "model_class": lambda: whole(sys.executable, "-c", MODEL_CLASS),
            "first_step": fresh,
            "first_step_again": lambda: first_step(asked.text, cache),
        }
        if asked.litgpt:
            sides["litgpt_help"] = lambda: whole(asked.litgpt, "--help")
        if asked.model:
            short = ("--prompt", "Once upon a time", "generation.max_new_tokens=8")
            generate = (sys.executable, "-m", "llmkit", "generate", "--model", asked.model, *short)
            sides["generate"] = lambda: whole(*generate)
            sides["load"] = lambda: whole(sys.executable, "-c", LOAD, asked.model)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for number in range(asked.rounds + 1):
            for name, side in sides.items():
                took = side()
                if number:  # the first round fills the caches of the disk
                    seconds[name].append(took)
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = {
        f"{run}/{base}": round(middle[run] / middle[base], 2)
        for run in ("first_step", "first_step_again")
        for base in ("imports", "model_class")
    }
    if asked.litgpt:
        ratios["help/litgpt_help"] = round(middle["help"] / middle["litgpt_help"], 3)
    if asked.model:
        ratios["generate/load"] = round(middle["generate"] / middle["load"], 2)
    print(json.dumps({"seconds": middle, "ratios": ratios}))


if __name__ == "__main__":
    main()
