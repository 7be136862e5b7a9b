"""Compare how fast llmkit and a plain transformers loop measure perplexity, with random weights.

    python scripts/bench/evaluate.py [--layers 4] [--width 256] [--vocabulary 8192] [--window 256]
                                     [--tokens 65536] [--rounds 3] [--threads N]

The loop is the one in transformers' documentation: one window at a time, with the model's own loss.
Three texts: one document in windows without overlap, the same with a stride of half a window, and
separate documents of 8 to 128 tokens. The sides take turns in one process, after one warm-up round.
Prints one JSON object: median tokens per second, ratios, and the relative difference of the summed
losses in fp32, which is at most 1e-5.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from llmkit.data.text.token_file import TokenFile
from llmkit.distributed.processes import Processes, join_processes
from llmkit.evaluation.likelihood import score_rows
from llmkit.evaluation.scored_rows import CausalRows
from llmkit.evaluation.segments import segments_of
from llmkit.evaluation.windows import ScoringProtocol, Windows
from llmkit.models.logits import ChosenLogits

Side = Callable[[], float]
IGNORED = -100


@dataclass(frozen=True)
class Case:
    """A text, and how it is measured."""

    tokens: TokenFile
    protocol: ScoringProtocol


def build(given: argparse.Namespace) -> PreTrainedModel:
    torch.manual_seed(0)
    heads = max(1, given.width // 64)
    shape = LlamaConfig(
        vocab_size=given.vocabulary, hidden_size=given.width, intermediate_size=4 * given.width,
        num_hidden_layers=given.layers, num_attention_heads=heads, num_key_value_heads=heads,
        max_position_embeddings=given.window,
    )  # fmt: skip
    return LlamaForCausalLM(shape).eval()


def text(lengths: list[int], vocabulary: int) -> TokenFile:
    """Documents of random tokens, framed by id 0."""
    ids = np.random.default_rng(0).integers(1, vocabulary, sum(lengths) + len(lengths) + 1)
    starts = np.cumsum([0, *(length + 1 for length in lengths)])
    ids[starts] = 0
    sizes = np.array(lengths) * 4
    return TokenFile(
        ids=ids.astype(np.uint32), starts=starts[:-1], document_bytes=sizes,
        n_bytes=int(sizes.sum()), opening=0, closing=0, max_id=vocabulary - 1, blank=0,
        undecodable=0, lost=0.0, fingerprint="",
    )  # fmt: skip


def with_llmkit(model: PreTrainedModel, case: Case, processes: Processes) -> Side:
    logits = ChosenLogits(model)
    rows = CausalRows(Windows(case.tokens, case.protocol))
    parts = segments_of(case.tokens, np.full(logits.vocab_size, 4))
    return lambda: float(score_rows(logits, rows, parts, processes, None, unwatched).nll.sum())


def with_transformers(model: PreTrainedModel, case: Case) -> Side:
    window, stride = case.protocol.window, case.protocol.stride
    bounds = [*case.tokens.starts.tolist(), len(case.tokens.ids) - 1]
    whole = torch.from_numpy(case.tokens.ids.astype(np.int64))

    @torch.no_grad()
    def run() -> float:
        nll = 0.0
        for first, last in itertools.pairwise(bounds):
            done = first
            for begin in range(first, last, stride):
                end = min(begin + window, last)
                # The loss shifts by one: the last token of these is predicted and not read.
                ids = whole[None, begin : end + 1]
                labels = ids.clone()
                labels[:, : done - begin + 1] = IGNORED
                nll += model(ids, labels=labels).loss.item() * (end - done)
                done = end
                if end == last:
                    break
        return nll

    return run


@contextmanager
def unwatched(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda amount: None


def measure(sides: dict[str, Side], tokens: int, rounds: int) -> dict[str, Any]:
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    found = {}
    for number in range(rounds + 1):
        for name, run in sides.items():
            began = time.perf_counter()
            found[name] = run()
            if number:
                speeds[name].append(tokens / (time.perf_counter() - began))
    medians = {name: round(statistics.median(values), 1) for name, values in speeds.items()}
    plain = medians["transformers_fp32"]
    return {
        "tokens_per_second": medians,
        "ratios": {name: round(speed / plain, 3) for name, speed in medians.items()},
        "relative_difference_fp32": abs(found["llmkit_fp32"] / found["transformers_fp32"] - 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    defaults = {"layers": 4, "width": 256, "vocabulary": 8192, "window": 256, "tokens": 65536}
    for name, default in {**defaults, "rounds": 3, "threads": torch.get_num_threads()}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    model = build(given)
    fp32 = join_processes("fp32")
    bf16 = replace(fp32, precision="bf16")

    chance = random.Random(0)
    short = [chance.randint(8, 128) for _ in range(given.tokens // 68)]
    plain = ScoringProtocol(given.window, given.window, "separate", "document", True)
    long = text([given.tokens], given.vocabulary)
    cases = {
        "windows": Case(long, plain),
        "half_stride": Case(long, replace(plain, stride=given.window // 2)),
        "short_documents": Case(text(short, given.vocabulary), plain),
    }
    results = {
        name: measure(
            {
                "llmkit_fp32": with_llmkit(model, case, fp32),
                "llmkit_bf16": with_llmkit(model, case, bf16),
                "transformers_fp32": with_transformers(model, case),
            },
            len(case.tokens.ids),
            given.rounds,
        )
        for name, case in cases.items()
    }
    print(json.dumps({**results, **vars(given)}))


if __name__ == "__main__":
    main()
