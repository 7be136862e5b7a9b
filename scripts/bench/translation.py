"""Translating from scratch: quality beside a decoder-only model, and speed beside Trainer.

`translation.py data DIRECTORY TSV` writes train.csv and test.csv: pairs of source and target in the
first two columns of TSV, each pair once; every tenth distinct source is for testing, with its first
target. `--every N` keeps one in N sources.

`translation.py quality DIRECTORY` trains, for each seed, llmkit's Transformer as an encoder-decoder
model, and a decoder-only model of transformers of about the same size on the same pairs as prompts
with responses; both from random weights, for as many epochs. Prints BLEU and chrF on 200 sources of
test.csv, with those of the baselines.

`translation.py speed DIRECTORY` compares training and writing translations with
transformers.Seq2SeqTrainer, from the same weights. Sides: `script` as run_translation.py sets it up
(fp32, batches padded to their longest row); `by_hand` the same with batches by length; `bf16` with
both; llmkit with its defaults, and with `train.precision=fp32`. The sides run in separate processes
and take turns; every figure is the median over the rounds. Prints one JSON line: target tokens/s of
training, texts/s of predicting (4 beams), peak memory in MiB, and the ratios of llmkit to each.

    .venv/bin/python scripts/bench/translation.py data DIRECTORY tatoeba-en-zh.tsv
    .venv/bin/python scripts/bench/translation.py quality DIRECTORY [--seeds 3] [--epochs 6]
    .venv/bin/python scripts/bench/translation.py speed DIRECTORY [--rounds 1] [--rows 2000]
        [--texts 200] [--width 128] [--layers 2]
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import processes

SIDES = ("script", "by_hand", "bf16", "llmkit", "llmkit_fp32")
BATCH, LENGTH, BEAMS, RATE = 32, 64, 4, 2e-3
TESTED = 200
"""Test sources that are translated."""

WIDTH, LAYERS = 128, 2
ARCHITECTURE = "model.architecture=transformer"
PAIRS = (
    "train.objective=sequence_to_sequence",
    f"data.max_length={LENGTH}", f"data.max_target_length={LENGTH}",
    "data.source_column=source", "data.target_column=target",
)  # fmt: skip
PACKS = 8
"""Packed rows of 128 tokens per step of the decoder-only model, which hold about BATCH pairs."""

Row = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("data", "quality", "speed"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("tsv", nargs="?", type=Path)
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--texts", type=int, default=TESTED)
    parser.add_argument("--width", type=int, default=WIDTH)
    parser.add_argument("--layers", type=int, default=LAYERS)
    parser.add_argument("--side", choices=SIDES)
    given = parser.parse_args()
    if given.job == "data":
        write_data(given.directory, given.tsv, given.every)
    elif given.job == "quality":
        print(json.dumps(quality(given.directory, given.seeds, given.epochs)))
    elif given.side:
        train, test = (read(given.directory / f"{name}.csv") for name in ("train", "test"))
        side = _llmkit if given.side.startswith("llmkit") else _trainer
        some = train[:: max(1, len(train) // given.rows)][: given.rows]
        print(
            json.dumps(side(given.side, some, test[: given.texts], given.directory / "model/final"))
        )
    else:
        model = given.directory / "model"
        processes.llmkit("finetune", "--csv", given.directory / "train.csv", *PAIRS,
                         ARCHITECTURE, *sized(given.width, given.layers), "train.max_steps=1",
                         "data.validation_fraction=0", "-o", model)  # fmt: skip
        medians = processes.take_turns(SIDES, given.rounds)
        ratios = {
            **processes.ratios_to_others(medians),
            **processes.ratios_to_others(medians, "llmkit_fp32"),
        }
        print(json.dumps({"speed": medians, "ratios": ratios, "rounds": given.rounds}))


def sized(width: int, layers: int) -> tuple[str, str]:
    """The keys of a new model's size."""
    return f"model.config.hidden_size={width}", f"model.config.num_hidden_layers={layers}"


def write_data(directory: Path, tsv: Path, every: int) -> None:
    """Writes both files, and prints how many pairs they have."""
    with tsv.open(encoding="utf-8", newline="") as file:
        pairs = [(line.split("\t")[0], line.split("\t")[1]) for line in file]
    by_source: dict[str, list[str]] = {}
    for source, target in dict.fromkeys(pairs):
        by_source.setdefault(source, []).append(target)
    kept = list(by_source.items())[::every]
    parts = {"train": [(s, t) for n, (s, targets) in enumerate(kept) if n % 10 for t in targets]}
    parts["test"] = [(source, targets[0]) for source, targets in kept[::10]]
    # Sentences are in order of length: the first rows of the file are as long as the others.
    parts["test"] = [row for first in range(7) for row in parts["test"][first::7]]
    directory.mkdir(parents=True, exist_ok=True)
    for name, rows in parts.items():
        write(directory / f"{name}.csv", rows)
        print(f"{name}: {len(rows):,} pairs")


def write(path: Path, rows: list[Any]) -> None:
    """Writes pairs as a table."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("source", "target"), *rows])


def read(path: Path) -> list[Row]:
    """The rows of a table that `write` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def quality(directory: Path, seeds: int, epochs: float) -> dict[str, Any]:
    """The metrics of both kinds of model for each seed, with means, and those of the baselines."""
    train, test = directory / "train.csv", directory / "test.csv"
    files = ("--csv", train, f"data.validation_files={test}", f"evaluation.responses={TESTED}",
             f"train.num_train_epochs={epochs}", "train.max_eval_samples=200")  # fmt: skip
    found: dict[str, list[Any]] = {"encoder-decoder": [], "decoder-only": []}
    baselines: dict[str, Any] = {}
    text = directory / "train.txt"
    text.write_text("".join(f"{row['source']}\n{row['target']}\n" for row in read(train)))
    for seed in range(seeds):
        with tempfile.TemporaryDirectory() as place:
            pairs = processes.llmkit(
                "finetune", *files, *PAIRS, ARCHITECTURE, *sized(WIDTH, LAYERS),
                f"train.global_batch_size={BATCH}", "train.learning_rate=0.006",
                "train.compile=false", f"seed={seed}", "-o", f"{place}/pairs",
            )  # fmt: skip
            baselines = {name: each for name, each in pairs["baseline"].items() if "bleu" in each}
            found["encoder-decoder"].append(_figures(pairs))
            processes.llmkit("pretrain", "--text", text, *sized(WIDTH, 2 * LAYERS),
                             "data.document=line", f"data.block_size={2 * LENGTH}",
                             "train.max_steps=1", "train.compile=false", f"seed={seed}",
                             "data.validation_fraction=0", "-o", f"{place}/base")  # fmt: skip
            completed = processes.llmkit(
                "finetune", *files, "--model", f"{place}/base", "train.objective=completion",
                "data.prompt_column=source", "data.response_column=target", "train.optimizer=muon",
                "train.learning_rate=0.006", f"data.block_size={2 * LENGTH}",
                f"train.global_batch_size={PACKS}", "train.compile=false",
                f"generation.max_new_tokens={LENGTH}", f"seed={seed}", "-o", f"{place}/completion",
            )  # fmt: skip
            found["decoder-only"].append(_figures(completed))
        print(json.dumps({kind: each[-1] for kind, each in found.items()}), flush=True)
    means = {
        kind: {name: round(statistics.mean(each[name] for each in runs), 3) for name in runs[0]}
        for kind, runs in found.items()
    }
    return {"means": means, "runs": found, "baselines": baselines}


def _figures(result: dict[str, Any]) -> dict[str, float]:
    found = result["validation"].get("answers") or result["validation"]
    return {
        "bleu": found["bleu"],
        "chrf": found["chrf"],
        "loss": result["validation"]["loss"],
        "parameters": result["parameters"],
        "steps": result["step"],
        "seconds": result["seconds"],
    }


def _trainer(side: str, train: list[Row], test: list[Row], model: Path) -> dict[str, float]:
    import torch
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    import llmkit.models.transformer  # noqa: F401 (registers the architecture)

    tokenizer = AutoTokenizer.from_pretrained(model)
    network = AutoModelForSeq2SeqLM.from_pretrained(model)

    def encoded(rows: list[Row]) -> list[dict[str, Any]]:
        return [
            dict(tokenizer(row["source"], text_target=row["target"], truncation=True,
                           max_length=LENGTH))
            for row in rows
        ]  # fmt: skip

    by_hand = side != "script"
    grouped = {"train_sampling_strategy": "group_by_length"} if by_hand else {}
    with tempfile.TemporaryDirectory() as directory:
        trainer = Seq2SeqTrainer(
            network,
            Seq2SeqTrainingArguments(
                directory, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
                num_train_epochs=1, learning_rate=RATE, bf16=side == "bf16", report_to="none",
                save_strategy="no", disable_tqdm=True, seed=0, predict_with_generate=True,
                generation_num_beams=BEAMS, generation_max_length=LENGTH,
                use_cpu=not torch.cuda.is_available(), **grouped,
            ),
            train_dataset=(examples := encoded(train)),
            data_collator=DataCollatorForSeq2Seq(tokenizer, network),
        )  # fmt: skip
        seconds = trainer.train().metrics["train_runtime"]
    held_out = encoded(test)
    if by_hand:
        held_out.sort(key=lambda example: len(example["input_ids"]))
    begin = time.perf_counter()
    trainer.predict(held_out)
    return {
        "train": sum(len(example["labels"]) for example in examples) / seconds,
        "predict": len(test) / (time.perf_counter() - begin),
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _llmkit(side: str, train: list[Row], test: list[Row], model: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        files = {name: Path(directory, f"{name}.csv") for name in ("train", "test")}
        for name, rows in (("train", train), ("test", test)):
            write(files[name], [(row["source"], row["target"]) for row in rows])
        run = f"{directory}/run"
        trained = processes.llmkit(
            "finetune", "--csv", files["train"], "--model", model, "-o", run, *PAIRS,
            "train.num_train_epochs=1", f"train.learning_rate={RATE}",
            f"train.global_batch_size={BATCH}", "data.validation_fraction=0",
            f"generation.max_new_tokens={LENGTH}", f"generation.num_beams={BEAMS}",
            f"train.precision={'fp32' if side == 'llmkit_fp32' else 'auto'}",
        )  # fmt: skip
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        output = f"{directory}/predictions.jsonl"
        found = processes.llmkit("predict", "--csv", files["test"], "--model", run,
                                 "--output", output)  # fmt: skip
    speed = found["examples_per_second"]
    return {"train": trained["tokens_per_second"], "predict": speed, "memory": memory}


if __name__ == "__main__":
    main()
